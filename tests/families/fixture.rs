//! Fixtures, the engine on them, and how far apart two outputs are.

use std::collections::BTreeMap;
use std::path::Path;

use hlrc::exec::{Data, Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::ir::Module;
use hlrc::weights::{DType, FileCache, Header, MappedFile};

/// A tiny model and what it has to compute.
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) module: Module,
    pub(crate) files: FileCache,
    /// Inputs and outputs.
    pub(crate) expected: BTreeMap<String, Tensor>,
}

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        let folder = Path::new("tests/fixtures/families").join(name);
        let expected = tensors(&folder.join("expected.safetensors"));
        let (module, files) = import(&folder, &[]);
        Self {
            name: name.to_string(),
            module,
            files,
            expected,
        }
    }

    pub(crate) fn engine(&self, threads: usize) -> Engine {
        engine(&self.module, &self.files, threads)
    }

    /// The inputs that the module takes.
    pub(crate) fn inputs(&self) -> Vec<(&str, Tensor)> {
        let names = ["input_ids", "attention_mask", "token_type_ids"];
        let given = names.into_iter().filter_map(|name| {
            let tensor = self.expected.get(name)?;
            Some((name, tensor.clone()))
        });
        given.collect()
    }

    pub(crate) fn run(&self, engine: &Engine) -> Vec<(String, Tensor)> {
        exec(engine, &self.inputs())
    }

    /// Tokens `[2,8]` decoded behind the prompt.
    pub(crate) fn greedy(&self) -> Vec<u32> {
        ids(&self.expected["greedy"])
    }

    /// Width of an output.
    pub(crate) fn width(&self, output: &str) -> usize {
        *self.expected[output].shape.last().expect("a dimension")
    }
}

/// Imports a model; each note has to contain one of `notes`.
pub(crate) fn import(path: &Path, notes: &[&str]) -> (Module, FileCache) {
    let files = FileCache::new();
    let imported = open(&Input::Path(path.to_path_buf()), &files);
    let imported = imported.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let foreseen = |note: &String| notes.iter().any(|part| note.contains(part));
    let others: Vec<_> = imported.notes.iter().filter(|n| !foreseen(n)).collect();
    assert!(others.is_empty(), "{}: {others:?}", path.display());
    (imported.module, files)
}

pub(crate) fn engine(module: &Module, files: &FileCache, threads: usize) -> Engine {
    let options = Options {
        threads,
        ..Options::default()
    };
    Engine::new(module, files, &options).unwrap_or_else(|e| panic!("{}: {e}", module.name))
}

pub(crate) fn exec(engine: &Engine, inputs: &[(&str, Tensor)]) -> Vec<(String, Tensor)> {
    engine.run(inputs).unwrap_or_else(|e| panic!("{e}"))
}

/// All tensors of a safetensors file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let file = MappedFile::open(path).unwrap_or_else(|e| panic!("{e}"));
    let header = Header::read(&file).unwrap_or_else(|e| panic!("{e}"));
    let read = |info: hlrc::weights::TensorInfo| {
        let bytes = file
            .slice(info.offset, info.bytes)
            .expect("inside the file");
        let data = match info.dtype {
            DType::F32 => Data::F32(words(bytes, f32::from_le_bytes)),
            DType::I64 => Data::I64(words(bytes, i64::from_le_bytes)),
            other => panic!("{}: {} is {other}", path.display(), info.name),
        };
        let size = |&n: &u64| usize::try_from(n).expect("small");
        let shape = info.shape.iter().map(size).collect();
        (info.name, Tensor { shape, data })
    };
    header.tensors.into_iter().map(read).collect()
}

fn words<T, const N: usize>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    let (words, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "whole elements");
    words.iter().map(|word| read(*word)).collect()
}

pub(crate) fn f32s(tensor: &Tensor) -> &[f32] {
    match &tensor.data {
        Data::F32(values) => values,
        other => panic!("expected f32, found {other:?}"),
    }
}

pub(crate) fn i64s(tensor: &Tensor) -> &[i64] {
    match &tensor.data {
        Data::I64(values) => values,
        other => panic!("expected i64, found {other:?}"),
    }
}

/// Token ids.
pub(crate) fn ids(tensor: &Tensor) -> Vec<u32> {
    let id = |&id: &i64| u32::try_from(id).expect("a token");
    i64s(tensor).iter().map(id).collect()
}

/// The greater of two relative errors: of the norms, and of the greatest entries.
///
/// What is no number is as far off as can be.
pub(crate) fn error(have: &[f32], want: &[f32]) -> f64 {
    assert_eq!(have.len(), want.len(), "number of values");
    let (mut off, mut size, mut worst, mut greatest) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (&have, &want) in have.iter().zip(want) {
        let difference = f64::from(have) - f64::from(want);
        if !difference.is_finite() {
            return f64::INFINITY;
        }
        off += difference * difference;
        size += f64::from(want) * f64::from(want);
        worst = worst.max(difference.abs());
        greatest = greatest.max(f64::from(want).abs());
    }
    (off / size).sqrt().max(worst / greatest)
}
