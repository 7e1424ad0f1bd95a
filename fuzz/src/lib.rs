//! What the fuzz targets share: a folder in memory, and checks of modules.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use hlrc::ir::Module;
use hlrc::ir::site::sites;
use hlrc::ir::text::{parse, print};
use hlrc::ir::verify::verify;

/// A folder of this process, in memory where the system has such a place.
pub fn scratch() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let root = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        let folder = root.join(format!("hlrc-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for scratch files");
        folder
    })
}

/// Writes a file of the scratch folder and gives its path.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch().join(name);
    std::fs::write(&path, bytes).expect("a writable scratch folder");
    path
}

/// An importer's module: must verify, and come back through its text.
pub fn check_imported(module: &Module) {
    verify(module).unwrap_or_else(|error| panic!("{error}"));
    let text = print(module);
    let mut back = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    back.base_dir.clone_from(&module.base_dir);
    if back != *module {
        panic!("the text loses something:\n{text}\n{}", print(&back));
    }
    sites(module);
}
