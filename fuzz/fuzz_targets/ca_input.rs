#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mtls_daemon::untrusted::ca_input(bytes));
