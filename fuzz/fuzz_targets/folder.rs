//! Manifests and journals of `.hlrc` folders.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use hlrc::export::hlrc::{MANIFEST_FILE, MODULE_FILE, Manifest};
use hlrc::import::{Input, open};
use hlrc::ir::Module;
use hlrc::store::{Journal, restore};
use hlrc::weights::FileCache;
use hlrc_fuzz::{file, scratch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static MODULE: OnceLock<()> = OnceLock::new();
    MODULE.get_or_init(|| {
        file(
            MODULE_FILE,
            b"hlir 1\nmodule \"m\" {\n  graph @main(%x) -> (%x) {\n  }\n}\n",
        );
    });
    file(MANIFEST_FILE, data);
    let input = Input::named(scratch());
    match open(&input, &FileCache::new()) {
        Ok(imported) => {
            let manifest: Manifest = serde_json::from_slice(data).expect("it was read before");
            assert_eq!(manifest.pipelines, imported.pipelines);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    journal(file("journal", data));
});

fn journal(path: PathBuf) {
    let Ok((journal, records)) = Journal::resume(&path, "f") else {
        return;
    };
    drop(journal);
    let mut module = Module::default();
    for record in &records {
        if let Err(error) = restore(&mut module, record) {
            assert!(!error.to_string().is_empty());
        }
    }
    let again = Journal::resume(&path, "f").map(|(_, records)| records);
    assert_eq!(
        again.ok(),
        Some(records),
        "a journal is cut to what is complete"
    );
}
