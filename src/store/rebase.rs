//! Weights' paths as seen from where text IR is written.

use crate::ir::{Module, Storage};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Makes the module's relative paths start at `folder` instead of its base folder.
///
/// So text that is written elsewhere still finds its weights.
pub fn rebase(module: &mut Module, folder: &Path) {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let base = if module.base_dir.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        module.base_dir.clone()
    };
    // Links are resolved first, since `..` behind one leads elsewhere.
    let (Ok(to), Ok(from)) = (folder.canonicalize(), base.canonicalize()) else {
        return;
    };
    if to != from {
        let mut known: HashMap<Arc<str>, Arc<str>> = HashMap::new();
        let weights = module.weights.iter_mut();
        for part in weights.flat_map(|w| w.storage.parts_mut()) {
            let Storage::File { path, .. } = part else {
                continue;
            };
            if Path::new(path.as_ref()).is_absolute() {
                continue;
            }
            let moved = known.entry(Arc::clone(path)).or_insert_with(|| {
                let target = from.join(path.as_ref());
                // A path that is no text stays as it is; it came from text, so this does not occur.
                relative(&target, &to)
                    .to_str()
                    .map_or_else(|| Arc::clone(path), Arc::from)
            });
            *path = Arc::clone(moved);
        }
    }
    module.base_dir = folder.to_path_buf();
}

/// The way from one absolute folder to a file.
fn relative(target: &Path, from: &Path) -> PathBuf {
    let mut way: Vec<Component<'_>> = Vec::new();
    for part in target.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(way.last(), Some(Component::Normal(_))) => {
                way.pop();
            }
            part => way.push(part),
        }
    }
    let from: Vec<Component<'_>> = from.components().collect();
    let shared = way.iter().zip(&from).take_while(|(a, b)| a == b).count();
    if shared == 0 {
        return way.iter().collect();
    }
    let up = from.iter().skip(shared).map(|_| Component::ParentDir);
    up.chain(way.iter().skip(shared).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways() {
        for (target, from, way) in [
            ("/a/b/m.onnx", "/a/b", "m.onnx"),
            ("/a/b/m.onnx", "/a/c/d", "../../b/m.onnx"),
            ("/a/b/m.onnx", "/", "a/b/m.onnx"),
            ("/a/b/../c/m.onnx", "/a/c", "m.onnx"),
        ] {
            assert_eq!(relative(Path::new(target), Path::new(from)), Path::new(way));
        }
    }
}
