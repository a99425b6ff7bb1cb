//! The table of `heirloom::compared` is true as far as a program can tell: each test that it names exists.

use std::collections::BTreeSet;
use std::path::Path;

/// The lines of the tables, each in its cells.
fn rows() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/compared.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let cells = |row: &str| row.split(" | ").map(str::to_owned).collect::<Vec<_>>();
    rows.map(cells).filter(|cells| cells[0] != "what").collect()
}

/// The functions below an attribute that makes them tests, in the files that a module may be in.
fn tests(module: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for folder in ["integration", "src"] {
        for file in [format!("{folder}/{module}.rs"), format!("{folder}/{module}/mod.rs")] {
            let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                match name.and_then(|rest| rest.split('(').next()) {
                    Some(name) => {
                        if std::mem::take(&mut is_test) {
                            found.insert(name.to_owned());
                        }
                    }
                    None => is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test"),
                }
            }
        }
    }
    found
}

#[test]
fn every_yes_names_a_test_that_exists() {
    let rows = rows();
    assert!(rows.len() > 50, "{}", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let ours = row.last().unwrap();
        let named: Vec<&str> = ours.split('`').skip(1).step_by(2).collect();
        if ours.contains("yes") != (named.len() == 1) {
            wrong.push(format!("{}: {ours}", row[0]));
        }
        for name in named {
            let exists =
                name.rsplit_once("::").is_some_and(|(module, test)| tests(&module.replace("::", "/")).contains(test));
            if !exists {
                wrong.push(format!("{}: there is no test {name}", row[0]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_row_has_a_cell_for_each_column() {
    for row in rows() {
        assert!(row.len() == 8 || row.len() == 2, "{row:?}");
    }
}
