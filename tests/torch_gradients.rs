//! Gradients of whole models against torch's autograd: as they are (`tests/fixtures/gradients/make.py`),
//! and rewritten with low-rank, sparse and quantized terms (`terms.py` beside it).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hlrc::exec::{Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::ir::Part;
use hlrc::train::grad::{Wanted, What, differentiate, parameters};
use hlrc::train::loss::{self, Losses};
use hlrc::weights::{DType, FileCache, Header, MappedFile};

/// Largest difference from torch, relative to the gradient's norm.
const TOLERANCE: f64 = 1e-4;

/// Numbers of a safetensors file, ids among them.
fn numbers(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let file = MappedFile::open(path).unwrap_or_else(|e| panic!("{e}"));
    let header = Header::read(&file).unwrap_or_else(|e| panic!("{e}"));
    let read = |info: hlrc::weights::TensorInfo| {
        let bytes = file.slice(info.offset, info.bytes).expect("inside");
        let words = bytes.as_chunks::<8>().0.iter();
        let values = match info.dtype {
            DType::F64 => words.map(|w| f64::from_le_bytes(*w)).collect(),
            DType::I64 => words.map(|w| i64::from_le_bytes(*w) as f64).collect(),
            other => panic!("{} is {other}", info.name),
        };
        (info.name, values)
    };
    header.tensors.into_iter().map(read).collect()
}

/// The tokens that torch was given.
fn tokens(folder: &Path) -> (Vec<usize>, Vec<i64>) {
    let path = folder.join("expected.safetensors");
    if !path.exists() {
        let ids = (0..24).map(|i| (7 * i * i + 3 * i + 1) % 512).collect();
        return (vec![1, 24], ids);
    }
    let file = MappedFile::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let header = Header::read(&file).unwrap_or_else(|e| panic!("{e}"));
    let info = header.tensor("input_ids").expect("input_ids");
    let bytes = file.slice(info.offset, info.bytes).expect("inside");
    let shape = info.shape.iter().map(|&n| n as usize).collect();
    let ids = bytes.as_chunks::<8>().0.iter();
    (shape, ids.map(|w| i64::from_le_bytes(*w)).collect())
}

/// Holds a model's gradients against torch's; gives the names of the tensors that were compared.
///
/// `folder` has the tokens that torch was given; `model` is the model, there or elsewhere.
fn check(name: &str, model: &Path, folder: &Path, want: &Path) -> Vec<String> {
    let want = numbers(want);
    let files = FileCache::new();
    let imported = open(&Input::Path(model.to_path_buf()), &files);
    let module = imported.unwrap_or_else(|e| panic!("{name}: {e}")).module;
    let losses = Losses {
        cross_entropy: true,
        ..Losses::default()
    };
    let module = loss::on_logits(&module, losses).unwrap_or_else(|e| panic!("{name}: {e}"));
    let known = |name: &str| want.contains_key(&format!("{name}.norm"));
    let wanted = Wanted {
        parameters: parameters(&module)
            .into_iter()
            .filter(|p| p.index.is_none() && known(&p.name(&module)))
            .filter(|p| p.what != What::Part(Part::Codes))
            .collect(),
        ..Wanted::default()
    };
    let joint = differentiate(&module, &wanted).unwrap_or_else(|e| panic!("{name}: {e}"));
    let engine = Engine::new(&joint.module, &files, &Options::default());
    let engine = engine.unwrap_or_else(|e| panic!("{name}: {e}"));
    let (shape, ids) = tokens(folder);
    let (count, len) = (shape[0], shape[1]);
    let next = |i: usize| if i % len + 1 < len { ids[i + 1] } else { -100 };
    let labels: Vec<i64> = (0..ids.len()).map(next).collect();
    let share = 1.0 / (count * (len - 1)) as f32;
    let weights = labels.iter().map(|&l| if l < 0 { 0.0 } else { share });
    let all = [
        ("input_ids", Tensor::i64(&shape, ids.clone())),
        ("attention_mask", Tensor::i64(&shape, vec![1; ids.len()])),
        (
            "position_ids",
            Tensor::i64(&shape, (0..ids.len()).map(|i| (i % len) as i64).collect()),
        ),
        (loss::LABELS, Tensor::i64(&shape, labels.clone())),
        (loss::LABEL_WEIGHTS, Tensor::f32(&shape, weights.collect())),
    ];
    let takes = |name: &str| engine.inputs().iter().any(|p| p.name == name);
    let given: Vec<(&str, Tensor)> = all.into_iter().filter(|(name, _)| takes(name)).collect();
    let made = engine.run(&given).unwrap_or_else(|e| panic!("{name}: {e}"));
    let floats = |i: usize| made[i].1.floats().expect("floats").to_vec();
    let loss = f64::from(floats(0)[0]);
    assert!(
        (loss - want["loss"][0]).abs() < 1e-5 * loss,
        "{name}: loss {loss}"
    );
    for (i, parameter) in wanted.parameters.iter().enumerate() {
        let tensor = parameter.name(&module);
        let have = floats(joint.outputs + i);
        let of = |part: &str| &want[&format!("{tensor}.{part}")];
        let norm = have
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt();
        let size = of("norm")[0];
        assert!(
            (norm - size).abs() <= TOLERANCE * size + 1e-9,
            "{name}: {tensor}: norm {norm}, {size}"
        );
        for (&at, &entry) in of("at").iter().zip(of("entries")) {
            let off = (f64::from(have[at as usize]) - entry).abs();
            assert!(
                off <= TOLERANCE * size + 1e-9,
                "{name}: {tensor} at {at}: {}, {entry}",
                have[at as usize]
            );
        }
    }
    let names = wanted.parameters.iter().map(|p| p.name(&module));
    names.collect()
}

/// The models of a folder of gradients, each with the folder that it was made from.
fn models(folder: &str) -> Vec<(String, PathBuf, PathBuf)> {
    let entries = std::fs::read_dir(folder).expect("fixtures");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    let found = paths.into_iter().map(|path| {
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let from = match name.as_str() {
            "stories260K" => PathBuf::from("tests/fixtures/stories260K"),
            name => Path::new("tests/fixtures/families").join(name),
        };
        (name, from, path)
    });
    found.collect()
}

#[test]
fn gradients_of_every_family_are_those_of_torch() {
    let models = models("tests/fixtures/gradients");
    assert!(models.len() >= 8, "{} models", models.len());
    for (name, folder, want) in models {
        let compared = check(&name, &folder, &folder, &want);
        let count = compared.len();
        assert!(count >= 9, "{name}: {count} tensors have torch's names");
    }
}

#[test]
fn gradients_of_rewritten_models_are_those_of_torch() {
    let models = models("tests/fixtures/gradients/terms");
    assert!(models.len() >= 8, "{} models", models.len());
    for (name, folder, want) in models {
        let compared = check(&name, &want.with_extension("hlir"), &folder, &want);
        for part in [".u", ".v", ".values", ".scales"] {
            let count = compared.iter().filter(|n| n.ends_with(part)).count();
            assert!(count >= 7, "{name}: {count} of {part} in {compared:?}");
        }
        let dense = compared.iter().filter(|n| n.ends_with("norm.weight"));
        assert!(dense.count() >= 1 || name == "gpt2", "{name}: {compared:?}");
    }
}
