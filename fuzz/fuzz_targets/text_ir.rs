//! Text IR: what parses must come back from its own print; what verifies must not make others panic.
#![no_main]

use hlrc::ir::patch::normalize;
use hlrc::ir::site::sites;
use hlrc::ir::text::{PrintOptions, parse, print, print_with};
use hlrc::ir::verify::verify;
use hlrc::onnx::encoded_len;
use hlrc::onnx::mapping::{Builder, Sources};
use hlrc::pass::manager::{Schedule, raise};
use hlrc::pass::pipeline::Pipeline;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut module = match parse(text) {
        Ok(module) => module,
        Err(error) => {
            assert!(error.line > 0 && error.column > 0);
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let printed = print(&module);
    let again = parse(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert!(again == module, "the print says something else:\n{printed}");
    assert_eq!(print(&again), printed);
    print_with(
        &module,
        &PrintOptions {
            elide_hashes: true,
            ..PrintOptions::default()
        },
    );

    if let Err(violations) = verify(&module) {
        assert!(!violations.0.is_empty());
        assert!(!violations.to_string().is_empty());
        return;
    }
    assert!(
        normalize(&module) == module,
        "parsing gives the normal form:\n{printed}"
    );
    sites(&module);
    if let Ok(message) = Builder::model(&module, &mut Sources::new("".into())) {
        encoded_len(&message);
    }
    let plan = Pipeline::parse("int8").expect("a pipeline");
    let schedule = Schedule::new(&plan, &[], None).expect("a schedule");
    if raise(&mut module, &schedule).is_ok() {
        verify(&module).unwrap_or_else(|error| panic!("{error}"));
    }
});
