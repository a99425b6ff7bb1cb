#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| heirloom::fuzz::frames(data));
