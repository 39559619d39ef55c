//! Plain aligned columns.

/// Rows under `header`, each column as wide as its widest cell, two spaces apart, no trailing spaces.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(width);
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(width(cell));
        }
    }
    let mut out = String::new();
    push(&mut out, &header, &widths);
    for row in rows {
        push(&mut out, &row.each_ref().map(String::as_str), &widths);
    }
    out
}

fn push<const N: usize>(out: &mut String, cells: &[&str; N], widths: &[usize; N]) {
    let mut line = String::new();
    for (cell, wide) in cells.iter().zip(widths) {
        line.push_str(&format!("{cell:<wide$}  "));
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [["a".into(), "long cell".into(), "x".into()], ["bb".into(), "".into(), "".into()]];
        assert_eq!(
            table(["COLUMN", "B", "C"], &rows),
            "COLUMN  B          C\na       long cell  x\nbb\n"
        );
    }
}
