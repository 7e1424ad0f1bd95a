//! `config.json`: the module that it implies must verify and come back through its text.
#![no_main]

use std::path::Path;

use hlrc::import::safetensors::config::Config;
use hlrc::import::safetensors::implied;
use hlrc_fuzz::check_imported;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let config = Config::parse(Path::new("config.json"), data);
    match config.and_then(|config| implied(&config)) {
        Ok(module) => check_imported(&module),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
