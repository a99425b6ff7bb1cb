//! Tables for people: columns by spaces, no lines, nothing that `awk` could not read.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

/// A table with a heading in capitals; empty where there are no rows.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(heading.map(str::to_owned));
    for row in rows {
        table.add_row(row.map(|cell| if cell.is_empty() { "-".to_owned() } else { clean(&cell) }));
    }
    if table.row_count() == 0 {
        return String::new();
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut lines = String::new();
    for line in table.lines() {
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// What another process said of itself, without anything that a terminal would act on.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_by_spaces_and_no_escapes() {
        let rows = [["web".to_owned(), "a\x1b[2J\nb".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "X"], rows), "NAME    X\nweb     a\u{fffd}[2J\u{fffd}b\nlonger  -\n");
        assert_eq!(table(["NAME"], []), "");
    }
}
