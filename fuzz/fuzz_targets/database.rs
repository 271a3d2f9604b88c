#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raftify_fuzz::database(bytes));
