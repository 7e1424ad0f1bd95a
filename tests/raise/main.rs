//! ONNX models raised to native ops: the same module as their checkpoint's, the same numbers as
//! ONNX Runtime's.
//!
//! The fixtures of `tests/fixtures/raise` and what ONNX Runtime makes of them come from its
//! `make.py`; no Python is needed here.

#[path = "../common/mod.rs"]
mod common;
mod lengths;
mod masks;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use common::model;
use hlrc::exec::{Data, Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::ir::{Graph, Matrix, Module, Native, Op, OpKind, Operand, Term, ValueId, WeightId};
use hlrc::passes::raise;
use hlrc::store::Reader;
use hlrc::weights::{DType, FileCache, Header, MappedFile};

/// Largest difference from ONNX Runtime, relative to the largest output.
const TOLERANCE: f32 = 1e-4;

/// Fixtures of which every op is raised.
const WHOLE: [&str; 19] = [
    "bert.dynamo",
    "bert.script",
    "distilbert.script",
    "gemma2.dynamo",
    "genai.packed",
    "genai.split",
    "gpt2.dynamo",
    "gpt2.script",
    "gptj.script",
    "llama.dynamo",
    "llama.dynamo.past",
    "llama.script",
    "llama.script.past",
    "llama3.script",
    "mistral.script",
    "mistral_far.dynamo",
    "phi.dynamo",
    "phi3.script",
    "qwen3.dynamo",
];

fn import(path: &Path) -> Module {
    let input = Input::Path(path.to_path_buf());
    let imported = open(&input, &FileCache::new());
    imported
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .module
}

fn raised(path: &Path) -> Module {
    let mut module = import(path);
    let remarks = raise::raise_module(&mut module, &raise::Options::default());
    let remarks = remarks.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for remark in remarks {
        println!("{}: {remark}", path.display());
    }
    module
}

fn left(module: &Module) -> Vec<String> {
    let ops = module.graphs.iter().flat_map(|g| &g.ops);
    let left = ops.filter_map(|op| match &op.kind {
        OpKind::Onnx(onnx) => Some(onnx.op_type.clone()),
        _ => None,
    });
    left.collect()
}

#[test]
fn fixtures_are_raised_whole() {
    for name in WHOLE {
        let module = raised(&Path::new("tests/fixtures/raise").join(format!("{name}.onnx")));
        assert_eq!(left(&module), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn raised_models_compute_what_onnx_runtime_does() {
    let expected = tensors(Path::new("tests/fixtures/raise/expected.safetensors"));
    for name in WHOLE {
        let module = raised(&Path::new("tests/fixtures/raise").join(format!("{name}.onnx")));
        agrees(name, &module, &expected);
    }
}

/// Runs a module on a fixture's inputs and compares all that it makes.
fn agrees(name: &str, module: &Module, expected: &BTreeMap<String, Tensor>) {
    let own = |n: &str| expected.get(&format!("{name}/{n}")).cloned();
    let engine = Engine::new(module, &FileCache::new(), &Options::default());
    let engine = engine.unwrap_or_else(|e| panic!("{name}: {e}"));
    let given = engine.inputs().iter().map(|port| {
        let tensor = own(&port.name).unwrap_or_else(|| panic!("{name}: {}", port.name));
        (port.name.as_str(), tensor)
    });
    let given: Vec<_> = given.collect();
    let outputs = engine.run(&given).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (output, found) in outputs {
        let wanted = own(&output).unwrap_or_else(|| panic!("{name}: {output}"));
        let (Data::F32(a), Data::F32(b)) = (&found.data, &wanted.data) else {
            panic!("{name}: {output} is no floats");
        };
        assert_eq!(found.shape, wanted.shape, "{name}: {output}");
        let top = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
        println!("{name}: {output}: {:.1e}", worst / top);
        assert!(
            worst <= TOLERANCE * top,
            "{name}: {output}: {worst} of {top}"
        );
    }
}

#[test]
fn windows_beyond_the_probes_are_seen() {
    for (name, wanted) in [
        ("mistral.script", Some(4)),
        ("mistral_far.dynamo", Some(40)),
        ("llama.dynamo", None),
    ] {
        let module = raised(&Path::new("tests/fixtures/raise").join(format!("{name}.onnx")));
        for op in module.graphs.iter().flat_map(|g| &g.ops) {
            if let OpKind::Native(Native::Attention { window, .. }) = &op.kind {
                assert_eq!(*window, wanted, "{name}");
            }
        }
    }
}

#[test]
fn decoders_to_be_run_take_tokens_alone() {
    for name in [
        "llama.dynamo",
        "llama.dynamo.past",
        "genai.split",
        "genai.packed",
    ] {
        let mut module = import(&Path::new("tests/fixtures/raise").join(format!("{name}.onnx")));
        raise::raise_to_run(&mut module).unwrap_or_else(|e| panic!("{name}: {e}"));
        let engine = Engine::new(&module, &FileCache::new(), &Options::default());
        let engine = engine.unwrap_or_else(|e| panic!("{name}: {e}"));
        engine
            .language_model()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn stories260k_is_the_module_of_its_checkpoint() {
    let folder = Path::new("tests/fixtures/stories260K");
    let onnx = raised(&folder.join("stories260K.onnx"));
    let checkpoint = import(folder);
    assert_eq!(outline(&onnx), outline(&checkpoint));
}

#[test]
fn an_encoder_is_raised_up_to_its_pooling() {
    let models = (
        model("paraphrase-MiniLM-L3-v2.onnx"),
        model("all-MiniLM-L6-v2"),
    );
    let (Some(path), Some(twin)) = models else {
        return;
    };
    let (onnx, twin) = (raised(&path), import(&twin));
    let kinds = |module: &Module| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for op in module.graphs.iter().flat_map(|g| &g.ops) {
            if let OpKind::Native(native) = &op.kind {
                *counts.entry(native.name().to_string()).or_default() += 1;
            }
        }
        counts
    };
    // Six layers against three; only the twin pools by its first token.
    let (mut three, mut six) = (kinds(&onnx), kinds(&twin));
    six.remove("first_token");
    *six.entry("activate".to_string()).or_default() -= 1;
    for (name, per_layer) in [
        ("add", 2),
        ("attention", 1),
        ("layer_norm", 2),
        ("activate", 1),
    ] {
        *three.entry(name.to_string()).or_default() += 3 * per_layer;
    }
    assert_eq!(three, six);
}

/// A module as one line per op, in the order in which outputs need them, without names: weights are
/// their numbers as `[out, in]`.
fn outline(module: &Module) -> Vec<String> {
    let graph = &module.graphs[0];
    let mut outline = Outline {
        module,
        graph,
        makers: HashMap::new(),
        numbers: HashMap::new(),
        lines: Vec::new(),
    };
    for op in graph.body.ops.iter().filter_map(|&id| graph.op(id)) {
        for &result in op.results.iter().flatten() {
            outline.makers.insert(result, op);
        }
    }
    for (at, &input) in graph.body.inputs.iter().enumerate() {
        outline.numbers.insert(input, at);
        outline
            .lines
            .push(graph.value(input).expect("an input").name.clone());
    }
    for &output in &graph.body.outputs {
        let text = outline.operand(output);
        outline.lines.push(format!("output {text}"));
    }
    outline.lines
}

struct Outline<'a> {
    module: &'a Module,
    graph: &'a Graph,
    makers: HashMap<ValueId, &'a Op>,
    numbers: HashMap<ValueId, usize>,
    lines: Vec<String>,
}

impl Outline<'_> {
    fn operand(&mut self, operand: Operand) -> String {
        match operand {
            Operand::None => "_".to_string(),
            Operand::Weight(id) => self.weight(id, false),
            Operand::Value(id) => format!("%{}", self.value(id)),
        }
    }

    fn value(&mut self, id: ValueId) -> usize {
        if let Some(&known) = self.numbers.get(&id) {
            return known;
        }
        let op = self.makers[&id];
        let inputs: Vec<String> = op.inputs.iter().map(|&i| self.operand(i)).collect();
        let kind = match &op.kind {
            OpKind::Linear(l) => {
                let bias = l.bias.map(|b| self.weight(b, false));
                let matrix = self.matrix(&l.matrix);
                format!(
                    "linear {matrix} {bias:?} {:?} {} {:?}",
                    l.layout, l.scale, l.role
                )
            }
            OpKind::Embedding(e) => format!("embedding {}", self.matrix(&e.matrix)),
            OpKind::Native(native) => match native {
                // The cache's slots are numbered alike.
                Native::Attention { .. } => format!("{native:?}"),
                other => format!("{other:?}"),
            },
            other => panic!("{other:?} of {}", self.graph.body.name),
        };
        self.lines.push(format!("{kind} of {}", inputs.join(", ")));
        let number = self.lines.len() - 1;
        self.numbers.insert(id, number);
        number
    }

    fn matrix(&self, matrix: &Matrix) -> String {
        let [Term::Dense(view)] = matrix.terms.as_slice() else {
            panic!("one dense term");
        };
        self.weight(view.weight, view.transposed)
    }

    /// Shape and a hash of the numbers.
    fn weight(&self, id: WeightId, transposed: bool) -> String {
        let weight = self.module.weight(id).expect("a weight");
        let bytes = Reader::new(&FileCache::new())
            .bytes(self.module, id)
            .expect("its bytes");
        let values: Vec<f32> = match weight.dtype {
            DType::F32 => bytes
                .chunks(4)
                .map(|b| f32::from_le_bytes(b.try_into().expect("4")))
                .collect(),
            other => panic!("a weight of {other}"),
        };
        let mut dims = weight.dims.clone();
        let mut ordered = values.clone();
        if transposed {
            let (rows, cols) = (dims[0] as usize, dims[1] as usize);
            ordered = (0..rows * cols)
                .map(|i| values[i % rows * cols + i / rows])
                .collect();
            dims.reverse();
        }
        let hash = ordered.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, x| {
            (h ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3)
        });
        format!("{dims:?} {hash:016x}")
    }
}

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
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
        let shape = info.shape.iter().map(|&n| n as usize).collect();
        (info.name, Tensor { shape, data })
    };
    header.tensors.into_iter().map(read).collect()
}

fn words<T, const N: usize>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    let (words, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "whole elements");
    words.iter().map(|word| read(*word)).collect()
}
