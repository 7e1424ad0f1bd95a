//! ONNX: what imports must verify, come back through text, and be written back byte for byte.
#![no_main]

use std::sync::Arc;

use hlrc::export::onnx::{Options, export};
use hlrc::ir::text::{parse, print};
use hlrc::ir::verify::verify;
use hlrc::onnx::mapping::{Builder, Sources, import};
use hlrc::onnx::{Limits, decode, encode, encoded_len, schema};
use hlrc::pass::manager::{Schedule, raise};
use hlrc::pass::pipeline::Pipeline;
use hlrc::weights::FileCache;
use hlrc_fuzz::{check_imported, file, scratch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let message = match decode(data, &schema::MODEL, Limits::default()) {
        Ok(message) => message,
        Err(error) => {
            assert!(error.offset <= data.len() as u64, "{error}");
            return;
        }
    };
    let back = encode::encode_to_vec(&message, data).expect("payloads inside the file");
    assert_eq!(encoded_len(&message), back.len() as u64);
    same(&back, data, "decode and encode");

    let path = file("model.onnx", data);
    let mut module = match import(&path) {
        Ok(module) => module,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    check_imported(&module);
    let parsed = parse(&print(&module)).expect("text that was printed");
    let name: Arc<str> = "model.onnx".into();
    let built = Builder::model(&parsed, &mut Sources::new(name)).expect("a module from ONNX");
    let back = encode::encode_to_vec(&built, data).expect("payloads inside the file");
    same(&back, data, "import and export");

    let plan = Pipeline::parse("int8").expect("a pipeline");
    let schedule = Schedule::new(&plan, &[], None).expect("a schedule");
    raise(&mut module, &schedule).unwrap_or_else(|error| panic!("{error}"));
    verify(&module).unwrap_or_else(|error| panic!("{error}"));
    // DequantizeLinear is folded into a linear, so the bytes may be others; the model must be sound.
    let out = scratch().join("out.onnx");
    match export(&module, &FileCache::new(), &out, Options::default()) {
        Ok(_) => check_imported(&import(&out).unwrap_or_else(|error| panic!("{error}"))),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn same(back: &[u8], data: &[u8], what: &str) {
    if back != data {
        let at = back.iter().zip(data).take_while(|(a, b)| a == b).count();
        let (ours, theirs) = (back.escape_ascii(), data.escape_ascii());
        panic!("{what} must give the same bytes; they differ at {at}\n{ours}\n{theirs}");
    }
}
