//! A module with its matrices decoded: what terms of plugins' kinds must agree with.

use std::path::Path;

use hlrc::import::{Input, open};
use hlrc::ir::{Attrs, Module, Storage, Term, Weight, WeightId, WeightView};
use hlrc::store::Reader;
use hlrc::weights::{DType, FileCache};

/// What is at a place, as commands read it.
pub fn opened(path: &Path) -> (Module, FileCache) {
    let files = FileCache::new();
    let imported = open(&Input::Path(path.to_path_buf()), &files);
    (imported.unwrap_or_else(|e| panic!("{e}")).module, files)
}

/// The module with each matrix as one dense f32 term, `NAME.dense`.
pub fn decoded(module: &Module, files: &FileCache) -> Module {
    let reader = Reader::new(files);
    let mut made = module.clone();
    for graph in 0..module.graphs.len() {
        for op in 0..module.graphs[graph].ops.len() {
            let Some(matrix) = module.graphs[graph].ops[op].kind.matrix() else {
                continue;
            };
            let values = reader
                .dense(module, matrix)
                .unwrap_or_else(|e| panic!("{e}"));
            let id = WeightId::new(made.weights.len());
            made.weights.push(Weight {
                name: format!("{}.dense", module.graphs[graph].ops[op].name),
                dtype: DType::F32,
                dims: vec![matrix.out_features, matrix.in_features],
                storage: Storage::Inline(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
                sha256: None,
                meta: Attrs::new(),
            });
            let own = made.graphs[graph].ops[op].kind.matrix_mut();
            own.expect("a matrix").terms = vec![Term::Dense(WeightView {
                weight: id,
                index: None,
                transposed: false,
            })];
        }
    }
    made
}
