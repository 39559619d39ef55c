use super::*;

/// Takes `bytes` in pieces of `size`. Where the body ended, or why it is none.
fn take(framing: Framing, bytes: &[u8], size: usize) -> Result<Option<usize>, Refusal> {
    let Some(mut body) = Body::of(framing) else { return Ok(Some(0)) };
    let mut at = 0;
    while at < bytes.len() {
        let (count, ended) = body.take(&bytes[at..bytes.len().min(at + size)])?;
        at += count;
        if ended {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

#[test]
fn a_body_ends_at_the_same_byte_in_whatever_pieces_it_comes() {
    let chunked = b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nX: y\r\n\r\nNEXT";
    for size in 1..chunked.len() {
        let ended = take(Framing::Chunked, chunked, size);
        assert_eq!(ended, Ok(Some(chunked.len() - 4)), "{size}");
        assert_eq!(take(Framing::Length(10), chunked, size), Ok(Some(10)), "{size}");
    }
    assert_eq!(take(Framing::Length(0), chunked, 5), Ok(Some(0)));
    assert_eq!(take(Framing::Chunked, &chunked[..20], 7), Ok(None));
}

#[test]
fn after_a_malformed_chunk_nothing_is_a_chunk() {
    let mut body = Body::of(Framing::Chunked).expect("a body");
    assert!(body.take(b"1\r\nab").is_err());
    assert!(body.take(b"\n0\r\n\r\n").is_err());
    let long = [b"1;", &[b'x'; MAX_EXTENSION + 1][..]].concat();
    assert!(take(Framing::Chunked, &long, 64).is_err());
    let trailers = [b"0\r\n", b"X: y\r\n".repeat(MAX_TRAILERS).as_slice()].concat();
    assert_eq!(take(Framing::Chunked, &trailers, 64), Err(Refusal::TOO_LARGE));
}
