//! What goes through the pipe: a length, a header in JSON, and the bytes that the header counts.

use std::io::{Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::pass::Remark;
use crate::pass::terms::{TensorData, TermData, TermSpec};
use crate::weights::DType;

/// Longest header that is read: a schema or a text may be long, a mistaken length is longer.
const MAX_HEADER: usize = 64 << 20;

/// A question to a child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// What is the plugin?
    Describe,
    /// Which pass is made of these options?
    Build(Call),
    /// What does a matrix take?
    Cost { call: Call, rows: u64, cols: u64 },
    /// Peel the matrix in the shared file. Bytes: moments, earlier terms.
    Peel(Call, Box<Peel>),
    /// Peel stored rows in the shared file.
    PeelStored {
        call: Call,
        stored: Stored,
        site: String,
        seed: u64,
    },
    /// Rewrite a module. Bytes: its text.
    Run {
        call: Call,
        base_dir: PathBuf,
        seed: u64,
        /// Where statistics of activations are.
        statistics: Option<PathBuf>,
    },
    /// Do something with a term of a plugin's kind. Bytes: its tensors, then the activations.
    Term { term: Term, work: Work },
}

/// A pass with its options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) pass: String,
    pub(super) options: Map<String, Value>,
    /// The run's.
    pub(super) seed: u64,
}

/// What is known of a peel besides the matrix.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Peel {
    pub(super) site: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) seed: u64,
    pub(super) rotation_seed: u64,
    pub(super) next: Option<Quantizer>,
    pub(super) quantized_later: bool,
    pub(super) rotation: Option<[u64; 3]>,
    /// Tokens, and whether the whole matrix is there besides the diagonal.
    pub(super) moments: Option<(u64, bool)>,
    pub(super) earlier: Vec<(Traits, Parts)>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// An integer quantizer in numbers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Quantizer {
    pub(super) bits: u32,
    pub(super) symmetric: u32,
    pub(super) group: u32,
    pub(super) method: u32,
    pub(super) feedback: u32,
}

/// What the manager asks of a matrix pass, in numbers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Traits {
    pub(super) access: u32,
    pub(super) residual: u32,
    pub(super) calibration: u32,
    pub(super) quantizes: bool,
    pub(super) quantizer: Option<Quantizer>,
}

/// A term's structure; its bytes follow the header.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Parts {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) spec: TermSpec,
    pub(super) tensors: Vec<Tensor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
}

/// A term of a plugin's kind.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Term {
    pub(super) kind: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) attrs: Map<String, Value>,
    pub(super) tensors: Vec<Tensor>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Work {
    Check,
    AddRows { first: usize, count: usize },
    Multiply { first: usize, count: usize },
    Backward,
    Onnx,
}

/// What a child answers.
#[allow(clippy::large_enum_variant)] // there is one at a time
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Plugin(About),
    Module {
        calibration: u32,
    },
    Matrix(Traits),
    Cost {
        workspace_bytes: u64,
        term_bytes: u64,
        nanos: f64,
    },
    /// Bytes: the terms that are there, the made one first. Earlier ones come back where they changed.
    Peeled {
        term: Option<Parts>,
        note: String,
        rotation: Option<[u64; 3]>,
        remarks: Vec<Remark>,
        earlier: Vec<(usize, Parts)>,
        #[serde(skip)]
        bytes: Vec<Vec<u8>>,
    },
    /// Bytes: the term.
    PeeledStored {
        term: Parts,
        weight_squares: f64,
        residual_squares: f64,
        #[serde(skip)]
        bytes: Vec<Vec<u8>>,
    },
    /// Bytes: the module's text, where it changed.
    Rewritten {
        remarks: Vec<Remark>,
        #[serde(skip)]
        bytes: Vec<Vec<u8>>,
    },
    /// Done. Bytes: numbers in f32, or nothing.
    Done {
        #[serde(skip)]
        bytes: Vec<Vec<u8>>,
    },
    /// There is no such thing.
    Nothing,
    /// Bytes: the constants.
    Onnx {
        opset: u64,
        tensors: Vec<Tensor>,
        nodes: Vec<Node>,
        output: String,
        #[serde(skip)]
        bytes: Vec<Vec<u8>>,
    },
    Failed {
        message: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) op_type: String,
    pub(super) inputs: Vec<String>,
    pub(super) output: String,
    pub(super) attrs: Map<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) abi: (u32, u32),
    pub(super) passes: Vec<AboutPass>,
    pub(super) kinds: Vec<(String, String)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AboutPass {
    pub(super) name: String,
    pub(super) summary: String,
    pub(super) doc: String,
    pub(super) schema: Value,
}

impl Answer {
    /// Where the bytes behind the header go.
    pub(super) fn bytes_mut(&mut self) -> Option<&mut Vec<Vec<u8>>> {
        match self {
            Self::Peeled { bytes, .. }
            | Self::PeeledStored { bytes, .. }
            | Self::Rewritten { bytes, .. }
            | Self::Done { bytes }
            | Self::Onnx { bytes, .. } => Some(bytes),
            _ => None,
        }
    }
}

impl Parts {
    /// A term's structure and its bytes.
    pub(super) fn of(term: TermData) -> (Self, Vec<Vec<u8>>) {
        let (rows, cols) = term.shape();
        let (spec, tensors) = term.into_parts();
        let (mut about, mut bytes) = (Vec::new(), Vec::new());
        for tensor in tensors {
            about.push(Tensor {
                name: tensor.suffix.into_owned(),
                dtype: tensor.dtype,
                shape: tensor.shape,
            });
            bytes.push(tensor.pieces.concat());
        }
        let parts = Self {
            rows,
            cols,
            spec,
            tensors: about,
        };
        (parts, bytes)
    }

    /// The term; takes its tensors from `bytes`.
    pub(super) fn term(
        self,
        bytes: &mut impl Iterator<Item = Vec<u8>>,
    ) -> Result<TermData, String> {
        let mut tensors = Vec::new();
        for tensor in self.tensors {
            tensors.push(TensorData {
                suffix: tensor.name.into(),
                dtype: tensor.dtype,
                shape: tensor.shape,
                pieces: vec![bytes.next().ok_or("too few tensors came")?],
            });
        }
        TermData::from_parts(self.spec, tensors, self.rows, self.cols).map_err(|e| e.to_string())
    }
}

/// Sends a header and bytes.
pub(super) fn send(
    to: &mut impl Write,
    header: &impl Serialize,
    blobs: &[&[u8]],
) -> std::io::Result<()> {
    let lengths: Vec<usize> = blobs.iter().map(|b| b.len()).collect();
    let text = serde_json::to_vec(&(header, lengths))?;
    to.write_all(&(text.len() as u64).to_le_bytes())?;
    to.write_all(&text)?;
    blobs.iter().try_for_each(|blob| to.write_all(blob))?;
    to.flush()
}

/// Receives a header and bytes; `None` where the other side ended before one began.
pub(super) fn receive<T: serde::de::DeserializeOwned>(
    from: &mut impl Read,
) -> std::io::Result<Option<(T, Vec<Vec<u8>>)>> {
    let mut length = [0; 8];
    match from.read(&mut length)? {
        0 => return Ok(None),
        n => from.read_exact(&mut length[n..])?,
    }
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER {
        return Err(std::io::Error::other(
            "what came is no answer: something else writes to the pipe",
        ));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text)?;
    let (header, lengths): (T, Vec<usize>) = serde_json::from_slice(&text)?;
    let mut blobs = Vec::with_capacity(lengths.len().min(1024));
    for length in lengths {
        let mut blob = Vec::new();
        from.by_ref().take(length as u64).read_to_end(&mut blob)?;
        if blob.len() != length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        blobs.push(blob);
    }
    Ok(Some((header, blobs)))
}
