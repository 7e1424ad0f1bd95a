//! Statistics of activations: our files and importance matrices of llama.cpp.
#![no_main]

use hlrc::calib::{Statistics, Summary};
use hlrc_fuzz::file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("statistics", data);
    let found = match Statistics::open(&path) {
        Ok(found) => found,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let names: Vec<String> = found.sites().map(str::to_string).collect();
    for name in names {
        match (found.site(&name), found.diagonal(&name)) {
            (Ok(Some(whole)), Ok(Some(diagonal))) => {
                assert_eq!(whole.diag, diagonal.diag);
                let n = whole.diag.len();
                assert!(whole.hessian.is_none_or(|h| h.len() == n * n));
            }
            // A damaged matrix beside a sound diagonal.
            (Err(error), _) | (_, Err(error)) => assert!(!error.to_string().is_empty()),
            _ => {}
        }
    }
    if let Err(error) = Summary::new(&found) {
        assert!(!error.to_string().is_empty());
    }
});
