//! Bytes that may be the manifest of an epoch.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| sojourn_snapshot::files::exercise_manifest(bytes));
