//! The map of the code in `src/lib.rs` is true: arrows point down, `unsafe` is in one file, and so on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder, with its text.
fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files of the library, by their path in `src`: the program is a crate of its own.
fn library() -> Vec<(String, String)> {
    files(&source())
        .into_iter()
        .map(|(path, text)| (path.strip_prefix(source()).unwrap().to_str().unwrap().to_owned(), text))
        .filter(|(path, _)| path != "lib.rs" && !path.starts_with("bin/"))
        .collect()
}

/// The code without comments and without the unit tests, which may look at what they like.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether a file is nothing but tests: `tests.rs`, or below a folder of that name.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

/// The table in the documentation of the crate: module to layer.
fn layers() -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(source().join("lib.rs")).unwrap();
    let mut layers = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = line.split(" | ");
        let Ok(layer) = cells.next().unwrap().parse::<u32>() else { continue };
        for name in cells.next().unwrap().split('`').skip(1).step_by(2) {
            // `adapter::{std, mio, tokio}` is one module.
            layers.insert(name.split("::").next().unwrap().to_owned(), layer);
        }
    }
    layers
}

/// The top-level module of a file: `driver/mod.rs` and `driver/joining.rs` are both `driver`.
fn module(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

/// The modules that a file names by `crate::`, those of a list in braces as well.
fn named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in code.split("crate::").skip(1) {
        if let Some(list) = part.strip_prefix('{') {
            let list = list.split(';').next().unwrap();
            let mut depth = 0;
            let mut word = String::new();
            for character in list.chars() {
                match character {
                    '{' => depth += 1,
                    '}' | ',' if depth == 0 => names.push(std::mem::take(&mut word)),
                    '}' => depth -= 1,
                    _ if depth == 0 && !character.is_whitespace() => word.push(character),
                    _ => {}
                }
            }
        } else {
            names.push(
                part.chars().take_while(|character| character.is_alphanumeric() || "_:".contains(*character)).collect(),
            );
        }
    }
    names.into_iter().map(|name| name.split("::").next().unwrap().to_owned()).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_module_has_a_place_in_the_map() {
    let layers = layers();
    assert!(layers.len() > 15, "{layers:?}");
    for (path, _) in library() {
        assert!(layers.contains_key(module(&path)), "{path} is not in the table of src/lib.rs");
    }
    let modules: Vec<String> = library().iter().map(|(path, _)| module(path).to_owned()).collect();
    for name in layers.keys().filter(|name| *name != "bin/ctl") {
        assert!(modules.contains(name), "the table of src/lib.rs has {name}, and src has not");
    }
}

#[test]
fn arrows_point_down() {
    let layers = layers();
    let mut wrong = Vec::new();
    for (path, text) in library().into_iter().filter(|(path, _)| !is_test(path)) {
        let from = layers[module(&path)];
        for name in named(&code(&text)) {
            // Types that the crate exports at its top, such as `crate::Result`, are in no layer of their own.
            let Some(to) = layers.get(&name) else { continue };
            let down = name == module(&path) || *to < from || (*to == from && from != 2);
            // Layer 2 is what the kernel offers, each by itself; and the protocol knows no system call.
            let allowed = down && !(from == 1 && name == "sys");
            if !allowed {
                wrong.push(format!("{path} (layer {from}) uses {name} (layer {to})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_protocol_has_no_sockets_and_no_clock() {
    for (path, text) in library() {
        if !["protocol", "wire"].contains(&module(&path)) || is_test(&path) {
            continue;
        }
        let code = code(&text);
        for word in ["std::os", "std::net", "std::io", "std::fs", "nix::", "mio::", "Instant", "SystemTime", "libc"] {
            assert!(!code.contains(word), "{path} has {word}");
        }
    }
}

/// A peer that may misbehave is for the program: no part of the library depends on it, and without `ctl` it is not there.
#[test]
fn only_the_program_knows_the_probe() {
    for (path, text) in library() {
        assert!(path == "probe.rs" || !named(&code(&text)).iter().any(|name| name == "probe"), "{path}");
    }
    let text = std::fs::read_to_string(source().join("lib.rs")).unwrap();
    assert!(text.contains("#[cfg(all(feature = \"ctl\", target_os = \"linux\"))]\npub mod probe;"));
}

#[test]
fn only_the_tokio_face_knows_tokio() {
    for (path, text) in library() {
        // `sys` registers descriptors for it, since that is unsafe.
        let face =
            path.starts_with("adapter/tokio") || ["adapter/mod.rs", "sys.rs", "elsewhere.rs"].contains(&path.as_str());
        if !face {
            assert!(!code(&text).contains("tokio::"), "{path}");
        }
    }
}

/// docs.rs builds the default features alone where it is not told otherwise, and the pages that link to all faces need more.
#[test]
fn docs_rs_is_told_to_show_everything() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let told = manifest.split("[package.metadata.docs.rs]").nth(1).unwrap().split("\n\n").next().unwrap();
    assert!(told.lines().any(|line| line == "all-features = true"), "{told}");
    assert!(told.contains(r#"["--cfg", "docsrs"]"#), "{told}");
}

#[test]
fn unsafe_code_is_in_one_file() {
    for (path, text) in files(&source()) {
        if path.ends_with("src/sys.rs") {
            continue;
        }
        let code = code(&text);
        for word in ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "unsafe(", "static mut"] {
            assert!(!code.contains(word), "{} has {word}", path.display());
        }
    }
}

/// `to_vec` writes fields by position: a peer with another order would read them wrong, without an error.
#[test]
fn nothing_is_encoded_by_position() {
    for (path, text) in files(&source()) {
        let code = code(&text);
        for word in ["rmp_serde::to_vec(", "rmp_serde::encode::to_vec(", "rmp_serde::from_read", "encode::write("] {
            assert!(!code.contains(word), "{} has {word}", path.display());
        }
    }
}

/// A plain read closes the descriptors that ride on the bytes it takes, without a word.
#[test]
fn one_file_reads_control_streams() {
    for (path, text) in library() {
        // What `state` reads is a file in memory, and `elsewhere` has nothing to read.
        if ["fdpass.rs", "state.rs", "elsewhere.rs"].contains(&path.as_str()) || is_test(&path) {
            continue;
        }
        let code = code(&text);
        for word in ["recvmsg", "recv_with_fd", "recvfrom", "impl Read ", "impl io::Read", "BufReader", "io::copy"] {
            assert!(!code.contains(word), "{path} has {word}");
        }
        if code.contains("UnixStream") {
            for word in [".read_exact(", ".read_to_end(", ".read_to_string(", ".read_vectored(", ".peek("] {
                assert!(!code.contains(word), "{path} has {word}");
            }
            // `Read` has to be in scope for `.read(` on a stream; the crate's own `read` takes a receiver.
            assert!(!code.contains("std::io::Read") && !code.contains("io::{Read"), "{path} imports Read");
        }
    }
}

/// The lease is freed for all by one `LOCK_UN`, which is what nix's guard and `File::unlock` do.
#[test]
fn the_lease_is_only_ever_closed() {
    for (path, text) in library() {
        let code = code(&text);
        for word in ["Flock", "LOCK_UN", ".unlock()"] {
            let own = word == ".unlock()" && module(&path) == "driver"; // Gives byte 0 back, by F_OFD_SETLK.
            assert!(own || !code.contains(word), "{path} has {word}");
        }
    }
}

/// shutdown(2) on a listener that is shared ends it for all, and so it does with a connection that was passed on. A control
/// connection is neither. (tokio's word for it is about one connection.)
#[test]
fn nothing_is_shut_down_but_control_connections() {
    for (path, text) in library() {
        let count = code(&text).replace("poll_shutdown(", "").matches("shutdown(").count();
        assert_eq!(count, usize::from(module(&path) == "connection"), "{path}");
    }
}
