//! Requests that no honest client sends, over both daemons and in the clear: each is refused with
//! its reason, no application hears of it, and nobody else has to wait or to pay for it.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::client::{self, End};
use mtls_tests::wait::patience;
use mtls_tests::web::{self, AUTO, PORT, Web};

/// Who talks, and to which port: over mTLS, in the clear, and where nobody declared HTTP.
const WAYS: [(&str, u16); 3] = [("client", PORT), ("stranger", PORT), ("client", AUTO)];
/// What a daemon may need more while many clients behave badly.
const GROWTH_KIB: u64 = 48 << 10;

/// What the application of `port` has heard so far. Where nobody declared HTTP, a connection alone says
/// nothing: for a client that is silent for long enough it is reached, for it may be the one to speak.
fn heard(town: &Web, port: u16) -> (usize, u64) {
    if port == PORT { (town.app.connections(), town.app.bytes()) } else { (0, town.auto.bytes()) }
}

/// The server's daemon says why it refused a connection's request.
fn check_logged(town: &Web, mark: usize, reason: &str) -> Result<()> {
    let refused = |line: &serde_json::Value| {
        line["direction"] == "inbound" && line["outcome"] != "ok" && line["outcome"].is_string()
    };
    let line = town.world.b().logged(mark, "the refusal", refused)?;
    ensure!(
        (&line["outcome"], &line["fault"]) == (&"http_refused".into(), &"client".into()),
        "{line}"
    );
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(reason), "{reason:?} should be its reason: {line}");
    Ok(())
}

/// Runs `work` and returns by how many KiB the daemons grew at most meanwhile.
fn growth<T>(town: &Web, work: impl FnOnce() -> Result<T> + Send) -> Result<(T, [u64; 2])>
where
    T: Send,
{
    let daemons = [town.world.a(), town.world.b()];
    let before = [daemons[0].resident()?, daemons[1].resident()?];
    let mut most = [0; 2];
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let result = work();
            done.store(true, Ordering::Release);
            result
        });
        while !done.load(Ordering::Acquire) && !working.is_finished() {
            for (index, daemon) in daemons.iter().enumerate() {
                let grown = daemon.resident()?.saturating_sub(before[index]);
                most[index] = most[index].max(grown);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        working.join().expect("no panic")
    })?;
    Ok((result, most))
}

/// So many connections of `client` at once.
fn crowd(town: &Web, client: &str, to: SocketAddr, number: usize) -> Result<Vec<TcpStream>> {
    town.world.pod(client).inside(|| (0..number).map(|_| client::connect(to)).collect())
}

/// What comes on `stream` until it ends. A reset after the answer is an end, too.
fn rest(mut stream: &TcpStream) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn what_could_be_read_in_two_ways_is_refused_and_the_log_says_why() -> Result<()> {
    let town = web::start(|spec| spec)?;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
    let post = |headers: &str| {
        format!("POST / HTTP/1.1\r\nHost: app\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}")
    };
    let get = |headers: &str| format!("GET / HTTP/1.1\r\n{headers}\r\n\r\n{smuggled}");
    let cases = [
        (post("Content-Length: 4\r\nTransfer-Encoding: chunked"), "both Content-Length"),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 4"), "both Content-Length"),
        (post("Content-Length: 5\r\nContent-Length: 40"), "more than one Content-Length"),
        (post("Content-Length: 5\r\nContent-Length: 5"), "more than one Content-Length"),
        (post("Content-Length: 5, 40"), "a malformed Content-Length"),
        (post("Content-Length: 0x5"), "a malformed Content-Length"),
        (post("Content-Length: 99999999999999999999"), "a malformed Content-Length"),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"), "Transfer-Encoding"),
        (post("Transfer-Encoding:\x0bchunked"), "a control character"),
        (post("Transfer-Encoding : chunked"), "a space before its colon"),
        (post("X-A: 1\r\n Transfer-Encoding: chunked"), "a folded header"),
        (post("X-A: 1\r\n\tTransfer-Encoding: chunked"), "a folded header"),
        (post("X-A: 1\rTransfer-Encoding: chunked"), "a control character"),
        (post("X-A: 1\nTransfer-Encoding: chunked"), "a bare LF"),
        (post("X-A: 1\0"), "a control character"),
        (post("no colon"), "a header line without a colon"),
        (get("Host: app\r\nHost: app"), "more than one Host"),
        (get("Host: app\r\nHost: other"), "more than one Host"),
        (get("Host: a@b"), "a malformed Host"),
        (get("Accept: */*"), "without a Host"),
        (format!("GET / HTTP/1.1\rHost: app\r\n\r\n{smuggled}"), "a malformed request line"),
        (format!("GET /a b HTTP/1.1\r\nHost: app\r\n\r\n{smuggled}"), "a malformed request line"),
        (
            format!("GET http://other/ HTTP/1.1\r\nHost: app\r\n\r\n{smuggled}"),
            "a Host that differs",
        ),
        (format!("GET / HTTP/1.10\r\nHost: app\r\n\r\n{smuggled}"), "a version"),
        (format!("GET /a%00b HTTP/1.1\r\nHost: app\r\n\r\n{smuggled}"), "an escaped NUL"),
    ];
    for (client, port) in WAYS {
        for (request, reason) in &cases {
            let place = || format!("{request:?} of {client} to {port}");
            let (before, mark) = (heard(&town, port), town.world.b().mark());
            let mut talker = town.talker(client, town.server(port))?;
            talker.send(request)?;
            let answer = talker.answer().with_context(place)?;
            ensure!(answer.code == 400 && answer.body.contains(reason), "{}: {answer:?}", place());
            let (rest, end) = talker.rest()?;
            ensure!(rest.is_empty() && end != End::Silent, "{}: then {rest:?}, {end:?}", place());
            ensure!(heard(&town, port) == before, "{}: it was heard of", place());
            check_logged(&town, mark, reason).with_context(place)?;
        }
    }
    // Behind a good request, which is answered first.
    let (mark, requests) = (town.world.b().mark(), town.app.mark());
    let mut talker = town.talker("client", town.server(PORT))?;
    talker.send(format!("GET /good HTTP/1.1\r\nHost: app\r\n\r\n{}", cases[0].0))?;
    ensure!((talker.answer()?.code, talker.answer()?.code) == (200, 400));
    ensure!(town.app.requests(requests).len() == 1);
    check_logged(&town, mark, cases[0].1)?;
    // A malformed chunk: the application has a part of its request, and never its end.
    for chunk in
        ["3\r\nabcd\r\n0\r\n\r\n", "3 \r\nabc\r\n0\r\n\r\n", "fffffffffffffffff\r\n", "3\nabc"]
    {
        let (mark, requests) = (town.world.b().mark(), town.app.mark());
        let mut talker = town.talker("client", town.server(PORT))?;
        let head = "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = talker.ask(format!("{head}{chunk}{smuggled}"));
        let answer = answer.with_context(|| format!("{chunk:?}"))?;
        ensure!(answer.code == 400, "{chunk:?}: {answer:?}");
        check_logged(&town, mark, "chunk").with_context(|| format!("{chunk:?}"))?;
        ensure!(town.app.requests(requests).is_empty(), "{chunk:?}: {:?}", town.app.last());
    }
    Ok(())
}

#[test]
fn a_head_of_a_megabyte_is_refused_and_costs_little_however_many_send_one() -> Result<()> {
    const CROWD: usize = 100;
    let town = web::start(|spec| spec)?;
    let long = "a".repeat(1 << 20);
    let many: String = (0..50_000).map(|number| format!("X-{number}: some value\r\n")).collect();
    let heads = [
        format!("GET / HTTP/1.1\r\nHost: app\r\nX-Long: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: app\r\n{many}\r\n"),
        format!("GET /{long} HTTP/1.1\r\nHost: app\r\n\r\n"),
        format!("{long} / HTTP/1.1\r\nHost: app\r\n\r\n"),
    ];
    for (client, port) in WAYS {
        for head in &heads {
            // Where nobody declared HTTP, such a word begins no request.
            if port == AUTO && head.starts_with(&long) {
                continue;
            }
            let place = format!("{:?}..., {client} to {port}", &head[..20]);
            let (before, mark) = (heard(&town, port), town.world.b().mark());
            let mut stream = &crowd(&town, client, town.server(port), 1)?[0];
            // It may be told before it has sent all.
            stream.write_all(head.as_bytes()).ok();
            let answer = rest(stream);
            let code = answer.split(' ').nth(1).unwrap_or_default();
            ensure!(["431", "400"].contains(&code), "{place}: {answer:?}");
            ensure!(heard(&town, port) == before, "{place}: it was heard of");
            check_logged(&town, mark, "").context(place)?;
        }
    }
    // As many connections that behave, so that what follows is the heads' alone.
    for (client, port) in WAYS {
        for mut stream in crowd(&town, client, town.server(port), CROWD)? {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")?;
            ensure!(rest(&stream).starts_with("HTTP/1.1 200 "));
        }
    }
    let before = (heard(&town, PORT), heard(&town, AUTO));
    let (answers, grown) = growth(&town, || {
        let mut streams = Vec::new();
        for (client, port) in WAYS {
            streams.extend(crowd(&town, client, town.server(port), CROWD)?);
        }
        // All are in the middle of their heads at once, and then want to send the rest.
        let (start, end) = heads[0].split_at(32 << 10);
        for mut stream in &streams {
            stream.write_all(start.as_bytes())?;
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok(std::thread::scope(|scope| {
            let tasks: Vec<_> = streams
                .iter()
                .map(|mut stream| {
                    scope.spawn(move || {
                        stream.write_all(end.as_bytes()).ok();
                        rest(stream)
                    })
                })
                .collect();
            tasks.into_iter().map(|task| task.join().expect("no panic")).collect::<Vec<_>>()
        }))
    })?;
    // Too large, or, on a machine that is slow enough, too late.
    let told = answers.iter().filter(|answer| {
        ["HTTP/1.1 431 ", "HTTP/1.1 408 "].iter().any(|code| answer.starts_with(code))
    });
    let told = told.count();
    // Who goes on sending for seconds may be cut off before it has read that; its own daemon then says so.
    let cut_off = |answer: &&String| answer.is_empty() || answer.starts_with("HTTP/1.1 503 ");
    let rest = answers.iter().filter(cut_off).count();
    ensure!(
        told + rest == 3 * CROWD && told > CROWD,
        "{told} were told, {rest} cut off: {answers:?}"
    );
    ensure!((heard(&town, PORT), heard(&town, AUTO)) == before, "an application heard of it");
    ensure!(grown.iter().all(|grown| *grown < GROWTH_KIB), "the daemons grew by {grown:?} KiB");
    Ok(())
}

#[test]
fn slow_heads_run_out_of_time_and_nobody_else_waits() -> Result<()> {
    /// What a first line and then a head may take, with what a busy machine adds.
    const LIMIT: Duration = Duration::from_secs(35);
    const CROWD: usize = 50;
    let town = web::start(|spec| spec)?;
    let before = (heard(&town, PORT), heard(&town, AUTO));
    let mark = town.world.b().mark();
    let mut streams = Vec::new();
    for (client, port) in WAYS {
        streams.extend(crowd(&town, client, town.server(port), CROWD)?);
    }
    let begun = Instant::now();
    let heads = ["GET / HTTP/1.1\r\nHost: app\r\nX-Slow: ", "GET /"];
    // And some whose first line has no end, where nobody knows yet that they speak HTTP.
    let endless = streams.len();
    streams.extend(crowd(&town, "stranger", town.server(AUTO), CROWD)?);
    let limit = patience(LIMIT);
    let mut open: Vec<Option<TcpStream>> = streams.into_iter().map(Some).collect();
    let (mut answers, mut round) = (Vec::new(), 0);
    for stream in open.iter().flatten() {
        stream.set_nonblocking(true)?;
    }
    while open.iter().any(Option::is_some) {
        ensure!(begun.elapsed() < limit, "{} are still open", open.iter().flatten().count());
        // One more byte each; then somebody else asks.
        for (index, slot) in open.iter_mut().enumerate() {
            let head = heads[usize::from(index >= endless)];
            let byte = head.as_bytes().get(round).copied().unwrap_or(b'a');
            let Some(mut stream) = slot.as_ref() else { continue };
            let mut answer = [0; 512];
            match stream.read(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    stream.write_all(&[byte]).ok();
                }
                Ok(count) if count > 0 => {
                    answers.push(String::from_utf8_lossy(&answer[..count]).into_owned());
                    stream.shutdown(Shutdown::Write).ok();
                }
                // The end of it, in order or not.
                _ => *slot = None,
            }
        }
        // Far less than a head may take.
        let since = Instant::now();
        let mut talker = town.talker("client", town.server(PORT))?;
        ensure!(
            talker.ask("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n")?.code == 200
        );
        ensure!(since.elapsed() < patience(Duration::from_secs(8)), "{:?}", since.elapsed());
        std::thread::sleep(Duration::from_millis(200));
        round += 1;
    }
    ensure!(begun.elapsed() > Duration::from_secs(10), "after {:?} already", begun.elapsed());
    // Who ended a first line is told, also where nobody declared HTTP.
    let told = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 408 ")).count();
    ensure!(told == 3 * CROWD, "{told} were told: {:?}", answers.first());
    for outcome in ["http_refused", "detect_timeout"] {
        let line = town.world.b().logged(mark, outcome, |line| line["outcome"] == outcome)?;
        ensure!(line["fault"] == "client", "{line}");
        ensure!(
            line["detail"].as_str().unwrap_or_default().contains("did not come in time"),
            "{line}"
        );
    }
    let mine = (town.app.requests(0), town.auto.requests(0));
    ensure!(mine.0.iter().all(|seen| seen.line().starts_with("POST")) && mine.1.is_empty());
    ensure!(heard(&town, AUTO) == before.1, "an application heard of it");
    Ok(())
}

#[test]
fn half_a_request_is_none() -> Result<()> {
    let town = web::start(|spec| spec)?;
    let upload = "POST /half HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nabc";
    let chunks = "POST /half HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc";
    for (client, port) in WAYS {
        for (request, reason) in [
            ("GET / HTTP/1.1\r\nHost: app\r\nX-Ha", "a head that breaks off"),
            ("GET / HTTP/1.1\r\nHost: app\r\n", "a head that breaks off"),
            (upload, "the request's body broke off"),
            (chunks, "the request's body broke off"),
        ] {
            let place = || format!("{request:?} of {client} to {port}");
            let app = if port == PORT { &town.app } else { &town.auto };
            let (before, mark, requests) = (heard(&town, port), town.world.b().mark(), app.mark());
            let mut talker = town.talker(client, town.server(port))?;
            talker.send(request)?;
            talker.end()?;
            let answer = talker.answer().with_context(place)?;
            ensure!(answer.code == 400, "{}: {answer:?}", place());
            check_logged(&town, mark, reason).with_context(place)?;
            ensure!(app.requests(requests).is_empty(), "{}: it looks complete", place());
            if !request.starts_with("POST") {
                ensure!(heard(&town, port) == before, "{}: it was heard of", place());
            }
        }
        // Gone without a word more.
        let mark = town.world.b().mark();
        let mut stream = crowd(&town, client, town.server(port), 1)?.remove(0);
        stream.write_all(upload.as_bytes())?;
        std::thread::sleep(Duration::from_millis(200));
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        let line = town.world.b().logged(mark, "its end", |line| line["direction"] == "inbound")?;
        ensure!(line["fault"] == "client" && line["outcome"] != "ok", "{client}, {port}: {line}");
    }
    ensure!(town.talker("client", town.server(PORT))?.get("/")?.code == 200);
    Ok(())
}

#[test]
fn ten_thousand_pipelined_requests_are_answered_in_order_in_bounded_memory() -> Result<()> {
    const NUMBER: usize = 10_000;
    let town = web::start(|spec| spec)?;
    let body = "x".repeat(16);
    let all: String = (0..NUMBER)
        .map(|number| {
            let length = number % 17;
            let body = &body[..length];
            format!(
                "POST /{number} HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        })
        .collect();
    for (client, port) in WAYS {
        let place = format!("{client} to {port}");
        let app = if port == PORT { &town.app } else { &town.auto };
        let mark = app.mark();
        let stream = crowd(&town, client, town.server(port), 1)?.remove(0);
        let (answers, grown) = growth(&town, || {
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    (&stream).write_all(all.as_bytes())?;
                    stream.shutdown(Shutdown::Write)
                });
                let answers = rest(&stream);
                sending.join().expect("no panic")?;
                Ok(answers)
            })
        })
        .with_context(|| place.clone())?;
        let numbers: Vec<usize> = answers
            .split("HTTP/1.1 200 OK\r\n")
            .skip(1)
            .filter_map(|answer| answer.split("\r\n\r\n").nth(1)?.trim().parse().ok())
            .collect();
        let expected: Vec<usize> = (0..NUMBER).map(|number| number % 17).collect();
        ensure!(
            numbers == expected,
            "{place}: {} answers, or out of order; {:?}; the last: {:?}",
            numbers.len(),
            answers.split("HTTP/1.1 ").skip(1).find(|it| !it.starts_with("200 OK\r\n")),
            answers.get(answers.len().saturating_sub(300)..),
        );
        let seen = app.requests(mark);
        let ordered = seen
            .iter()
            .enumerate()
            .all(|(number, seen)| seen.line() == format!("POST /{number} HTTP/1.1"));
        ensure!(seen.len() == NUMBER && ordered, "{place}: the application saw {}", seen.len());
        ensure!(grown.iter().all(|grown| *grown < GROWTH_KIB), "{place}: grew by {grown:?} KiB");
    }
    // Clients that ask and never read: they are not read from for ever, either.
    let (sent, grown) = growth(&town, || {
        let streams = crowd(&town, "client", town.server(PORT), 20)?;
        let mut sent = 0;
        for mut stream in &streams {
            stream.set_write_timeout(Some(Duration::from_millis(500)))?;
            for _ in 0..20 {
                let Ok(()) = stream.write_all(all.as_bytes()) else { break };
                sent += all.len();
            }
        }
        Ok(sent)
    })?;
    ensure!(sent < 20 * 20 * all.len(), "all of it was taken");
    ensure!(grown.iter().all(|grown| *grown < GROWTH_KIB), "the daemons grew by {grown:?} KiB");
    Ok(())
}
