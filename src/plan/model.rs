//! The plan as plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Args, Target};

/// A language model as kernel launches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this format.
    pub plan_version: u32,
    /// The model's name.
    pub model: String,
    /// The device that it is for.
    pub target: Target,
    /// Sizes that the plan is made for.
    pub shape: Shape,
    /// Kernel variants; steps name them by index.
    pub kernels: Vec<Variant>,
    /// Packed weights, in the blob's order.
    pub weights: Vec<PackedWeight>,
    /// Where the packed bytes are; absent in a plan from a configuration alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Blob>,
    /// Keys and values.
    pub kv: Kv,
    /// Buffers that outlive a program's run: caches, device scalars, tokens, logits.
    pub persistent: Vec<Buffer>,
    /// Launches: `decode`, a token of each sequence, and `prefill`, many tokens of one.
    pub programs: Vec<Program>,
    /// What is not fused, or is kept in another form than stored, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
}

/// Sizes that a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Sequences that decode together.
    pub batch: u32,
    /// Positions of a sequence.
    pub context: u32,
    /// Most tokens of a prompt that go through at once.
    pub chunk: u32,
    /// Entries of the vocabulary.
    pub vocabulary: u32,
    /// Width of the hidden state.
    pub hidden: u32,
}

/// A kernel, compiled with some defines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The kernel, and its source without `.cu`.
    pub kernel: String,
    /// Version of the kernel's parameters.
    pub abi: u32,
    /// `-D` defines.
    pub defines: BTreeMap<String, i64>,
    /// Machine code for the target, a file in the plan's folder; absent where it is compiled where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cubin: Option<String>,
}

/// A weight in the form that kernels read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedWeight {
    /// Unique in the plan.
    pub name: String,
    /// Layout of the sections: `tile16x64`, `tile16x16`, `terms`, `vector`, `table`.
    pub pack: String,
    /// Version of the layout.
    pub pack_version: u32,
    /// Rows that the weight makes, all parts and experts, padding included.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Where it is kept: `device` or `host`.
    pub place: Place,
    /// The matrices that it was packed from.
    pub parts: Vec<String>,
    /// Sections, in the order of the blob.
    pub sections: Vec<Section>,
}

/// Where a weight is kept and a step runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The GPU and its memory.
    #[default]
    Device,
    /// The processor and main memory.
    Host,
}

/// A contiguous part of a packed weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The kernel argument that it is for.
    pub name: String,
    /// Element type: `u8`, `s8`, `u32`, `i32`, `f16`, `f32`.
    pub dtype: String,
    /// First byte in the blob, a multiple of 256.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Lower-case hex SHA-256 of the bytes, where there is a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The packed bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// File in the plan's folder.
    pub file: String,
    /// Its size.
    pub bytes: u64,
}

/// Keys and values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kv {
    /// `f16` or `q8` (8-bit codes, 32 of a head sharing an f16 scale).
    pub format: String,
    /// Positions of a page; absent where a sequence's positions are contiguous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// Layers that keep keys and values.
    pub layers: u32,
    /// Bytes that one more position of a sequence takes, in layers without a window.
    pub bytes_per_token: u64,
    /// All bytes, at the plan's context and batch.
    pub bytes: u64,
}

/// Named memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// Unique among the persistent buffers and those of a program.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Sizes; elements are row-major.
    pub dims: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
    /// First byte in its arena, a multiple of 256.
    pub offset: u64,
    /// First and last step that use it; absent for persistent buffers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<[u32; 2]>,
    /// Who fills it before the first step: `host`, or `zero` once at the start; absent where a step does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filled: Option<String>,
    /// Where it is, if not on the device alone: `host` buffers are seen by both.
    #[serde(default, skip_serializing_if = "is_device")]
    pub place: Place,
}

fn is_device(place: &Place) -> bool {
    *place == Place::Device
}

/// A sequence of launches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// `decode` or `prefill`.
    pub name: String,
    /// Most tokens that go through.
    pub tokens: u32,
    /// Buffers in the program's arena.
    pub buffers: Vec<Buffer>,
    /// Bytes of the arena. Programs do not run at the same time and may share one.
    pub arena_bytes: u64,
    /// Launches.
    pub steps: Vec<Step>,
    /// Ranges of steps that are captured as one CUDA graph.
    pub captures: Vec<Capture>,
}

/// A range of steps to be captured, and the device scalars that change between replays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// First and last step.
    pub steps: [u32; 2],
    /// Buffers that the host writes before each replay.
    pub scalars: Vec<String>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it is in the model: `layers.0.qkv`.
    pub name: String,
    /// Index of the kernel variant.
    pub kernel: u32,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Stream.
    pub stream: u32,
    /// Earlier steps that must have ended.
    pub after: Vec<u32>,
    /// Where it runs.
    pub place: Place,
    /// Arguments, by name.
    pub args: Args,
    /// What it is expected to take.
    pub estimate: Estimate,
}

/// What a step is expected to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// Bytes of weights, caches and activations that go through memory.
    pub bytes: u64,
    /// Floating-point and integer operations.
    pub flops: u64,
    /// Microseconds on the target.
    pub us: f64,
}

/// Something that the reader of a plan should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// Where: a step or a weight.
    pub at: String,
    /// What, and why.
    pub text: String,
}

impl Plan {
    /// The program called `name`.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|p| p.name == name)
    }

    /// The weight called `name`.
    pub fn weight(&self, name: &str) -> Option<&PackedWeight> {
        self.weights.iter().find(|w| w.name == name)
    }

    /// Bytes of the weights that are kept somewhere, padding between sections included.
    pub fn weight_bytes(&self, place: Place) -> u64 {
        let placed = self.weights.iter().filter(|w| w.place == place);
        placed.map(PackedWeight::bytes).fold(0, u64::saturating_add)
    }

    /// Bytes of keys and values.
    pub fn kv_bytes(&self) -> u64 {
        let caches = self.persistent.iter().filter(|b| b.is_cache());
        caches
            .map(|b| aligned(b.bytes))
            .fold(0, u64::saturating_add)
    }

    /// Bytes of persistent buffers beside keys and values, and of the larger of the arenas.
    pub fn workspace_bytes(&self) -> u64 {
        let each = self.persistent.iter().filter(|b| !b.is_cache());
        let all = each.map(|b| aligned(b.bytes)).fold(0, u64::saturating_add);
        let arena = self.programs.iter().map(|p| p.arena_bytes).max();
        all.saturating_add(arena.unwrap_or(0))
    }

    /// Bytes of device memory that the plan takes, driver and context apart.
    pub fn device_bytes(&self) -> u64 {
        let weights = self.weight_bytes(Place::Device);
        weights
            .saturating_add(self.kv_bytes())
            .saturating_add(self.workspace_bytes())
    }
}

impl PackedWeight {
    /// Bytes with the padding behind each section.
    pub fn bytes(&self) -> u64 {
        let each = self.sections.iter().map(|s| aligned(s.bytes));
        each.fold(0, u64::saturating_add)
    }

    /// The section called `name`.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }
}

impl Buffer {
    /// Whether it holds keys or values.
    pub fn is_cache(&self) -> bool {
        self.name.starts_with("kv.")
    }
}

impl Program {
    /// The buffer called `name`.
    pub fn buffer(&self, name: &str) -> Option<&Buffer> {
        self.buffers.iter().find(|b| b.name == name)
    }

    /// Bytes, operations and microseconds of all steps.
    pub fn estimate(&self) -> Estimate {
        let add = |sum: Estimate, step: &Step| Estimate {
            bytes: sum.bytes.saturating_add(step.estimate.bytes),
            flops: sum.flops.saturating_add(step.estimate.flops),
            us: sum.us + step.estimate.us,
        };
        self.steps.iter().fold(Estimate::default(), add)
    }
}

impl Variant {
    /// A define; 0 where it is not given.
    pub fn define(&self, name: &str) -> i64 {
        self.defines.get(name).copied().unwrap_or(0)
    }
}

/// The next multiple of [`super::ALIGNMENT`].
pub fn aligned(bytes: u64) -> u64 {
    bytes
        .checked_next_multiple_of(super::ALIGNMENT)
        .unwrap_or(u64::MAX)
}

/// Bytes of an element of a buffer or section.
pub fn element_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "u8" | "s8" => Some(1),
        "f16" => Some(2),
        "f32" | "i32" | "u32" => Some(4),
        _ => None,
    }
}
