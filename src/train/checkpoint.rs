//! What an interrupted run goes on from: one safetensors file, replaced in one step.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::history::{Judged, Record};
use super::optimizer::Moving;
use crate::weights::read::Source;
use crate::weights::safetensors::Header;
use crate::weights::{DType, MappedFile, WeightsError};

/// Tensors of a checkpoint, by name.
type Tensors = HashMap<String, Bytes>;

/// Where a run keeps what it would go on from.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// Everything that the result depends on, hashed.
    print: String,
    /// Another rank's, which writes.
    follows: bool,
}

/// The state of training end to end.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) step: u64,
    pub(super) moving: Vec<Moving>,
    pub(super) best: Best,
    pub(super) records: Vec<Record>,
}

/// The best state that was judged.
#[derive(Clone, Debug, Default)]
pub(super) struct Best {
    pub(super) step: u64,
    pub(super) judged: Judged,
    /// Judgements since.
    pub(super) since: u64,
    /// What weights are there; nothing for the untrained model.
    pub(super) bytes: HashMap<String, Bytes>,
}

#[derive(Serialize, Deserialize)]
struct StateHeader {
    print: String,
    step: u64,
    units: Vec<f64>,
    best_step: u64,
    best: Judged,
    since: u64,
    records: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct BlockHeader {
    print: String,
    records: Vec<Record>,
}

const STATE: &str = "train.safetensors";

impl Store {
    /// A store in a folder that is there.
    pub fn new(folder: &Path, print: String) -> Self {
        Self {
            folder: folder.to_path_buf(),
            print,
            follows: false,
        }
    }

    /// The store of the first rank, for one that reads it and writes nothing.
    pub fn following(folder: &Path, print: String) -> Self {
        Self {
            follows: true,
            ..Self::new(folder, print)
        }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is left where training ends early, in words: the checkpoint of a step, or none.
    pub(super) fn left(&self, step: Option<u64>) -> String {
        match step {
            Some(step) => format!(
                "the last good checkpoint is of step {step}: {}",
                self.folder.join(STATE).display()
            ),
            None => "no checkpoint was written before (--checkpoint-every)".to_string(),
        }
    }

    /// The same in a block, which has no checkpoints of its own.
    pub(super) fn left_by_blocks(&self, last: Option<usize>) -> String {
        match last {
            Some(block) => format!(
                "the last good checkpoint is that of the part before: {}",
                self.folder.join(block_file(block)).display()
            ),
            None => "no part was finished before".to_string(),
        }
    }

    pub(super) fn save(&self, state: &State) -> Result<(), TrainError> {
        let header = StateHeader {
            print: self.print.clone(),
            step: state.step,
            units: state.moving.iter().map(|m| m.unit).collect(),
            best_step: state.best.step,
            best: state.best.judged,
            since: state.best.since,
            records: state.records.clone(),
        };
        let mut tensors: Vec<(String, DType, Vec<u8>)> = Vec::new();
        for (i, moving) in state.moving.iter().enumerate() {
            for (what, values) in parts(moving) {
                let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                tensors.push((format!("{i}.{what}"), DType::F32, bytes));
            }
        }
        tensors.extend(stored(&state.best.bytes));
        self.write(STATE, &header, &tensors)
    }

    pub(super) fn load(&self) -> Result<Option<State>, TrainError> {
        let Some((header, tensors)) = self.read::<StateHeader>(STATE)? else {
            return Ok(None);
        };
        let path = self.folder.join(STATE);
        self.check(&path, &header.print)?;
        let single = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap_or_default());
        let floats = |name: String| -> Result<Vec<f32>, TrainError> {
            let bytes = tensors.get(&name).ok_or_else(|| TrainError::Checkpoint {
                path: path.clone(),
                problem: format!("{name} is missing"),
            })?;
            Ok(bytes.chunks_exact(4).map(single).collect())
        };
        let mut moving = Vec::new();
        for (i, unit) in header.units.iter().enumerate() {
            moving.push(Moving {
                master: floats(format!("{i}.master"))?,
                mean: floats(format!("{i}.mean"))?,
                square: floats(format!("{i}.square"))?,
                unit: *unit,
            });
        }
        Ok(Some(State {
            step: header.step,
            moving,
            best: Best {
                step: header.best_step,
                judged: header.best,
                since: header.since,
                bytes: taken(&tensors),
            },
            records: header.records,
        }))
    }

    /// Keeps the weights of a finished block.
    pub(super) fn save_block(
        &self,
        block: usize,
        bytes: &HashMap<String, Bytes>,
        records: &[Record],
    ) -> Result<(), TrainError> {
        let header = BlockHeader {
            print: self.print.clone(),
            records: records.to_vec(),
        };
        self.write(&block_file(block), &header, &stored(bytes))
    }

    /// The weights of a block that was finished before.
    pub(super) fn load_block(
        &self,
        block: usize,
    ) -> Result<Option<(Tensors, Vec<Record>)>, TrainError> {
        let name = block_file(block);
        let Some((header, tensors)) = self.read::<BlockHeader>(&name)? else {
            return Ok(None);
        };
        self.check(&self.folder.join(name), &header.print)?;
        Ok(Some((taken(&tensors), header.records)))
    }

    fn check(&self, path: &Path, print: &str) -> Result<(), TrainError> {
        match print == self.print {
            true => Ok(()),
            false => Err(TrainError::Checkpoint {
                path: path.to_path_buf(),
                problem: "was written by a run with other settings, data or model".to_string(),
            }),
        }
    }

    /// Writes a file under another name, then renames it.
    fn write<H: Serialize>(
        &self,
        name: &str,
        header: &H,
        tensors: &[(String, DType, Vec<u8>)],
    ) -> Result<(), TrainError> {
        if self.follows {
            return Ok(());
        }
        let (path, temporary) = (
            self.folder.join(name),
            self.folder.join(format!("{name}.tmp")),
        );
        let state = serde_json::to_string(header).unwrap_or_default();
        let mut json = serde_json::Map::new();
        json.insert("__metadata__".into(), serde_json::json!({ "state": state }));
        let mut at = 0;
        for (name, dtype, bytes) in tensors {
            let count = bytes.len() as u64 * 8 / u64::from(dtype.bits());
            let entry = serde_json::json!({
                "dtype": dtype.safetensors_name(),
                "shape": [count],
                "data_offsets": [at, at + bytes.len()],
            });
            json.insert(name.clone(), entry);
            at += bytes.len();
        }
        let mut head = serde_json::to_vec(&json).unwrap_or_default();
        head.resize(head.len().next_multiple_of(8), b' ');
        let written = (|| {
            let mut file = BufWriter::new(File::create(&temporary)?);
            file.write_all(&(head.len() as u64).to_le_bytes())?;
            file.write_all(&head)?;
            for (_, _, bytes) in tensors {
                file.write_all(bytes)?;
            }
            let file = file
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        })();
        written.map_err(|source| TrainError::Io { path, source })
    }

    fn read<H: DeserializeOwned>(&self, name: &str) -> Result<Option<(H, Tensors)>, TrainError> {
        let path = self.folder.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let damaged = |problem: String| TrainError::Checkpoint {
            path: path.clone(),
            problem,
        };
        let broken = |error: WeightsError| damaged(format!("is damaged: {error}"));
        let file = MappedFile::open(&path).map_err(broken)?;
        let header = Header::read(&file).map_err(broken)?;
        let state = header.metadata.iter().find(|(key, _)| key == "state");
        let (_, state) = state.ok_or_else(|| damaged("is no checkpoint".to_string()))?;
        let parsed =
            serde_json::from_str(state).map_err(|e| damaged(format!("is damaged: {e}")))?;
        let source = Source::from(file);
        let mut tensors = HashMap::new();
        for tensor in header.tensors {
            // Copied: the file is replaced while the run goes on.
            let bytes = Bytes::copy_from_slice(
                source
                    .slice(tensor.offset, tensor.bytes)
                    .map_err(|error| damaged(format!("is damaged: {error}")))?,
            );
            tensors.insert(tensor.name, bytes);
        }
        Ok(Some((parsed, tensors)))
    }
}

fn block_file(block: usize) -> String {
    format!("train-block-{block}.safetensors")
}

fn parts(moving: &Moving) -> [(&'static str, &[f32]); 3] {
    [
        ("master", &moving.master),
        ("mean", &moving.mean),
        ("square", &moving.square),
    ]
}

/// Weights as tensors of a checkpoint, in order of their names.
fn stored(bytes: &HashMap<String, Bytes>) -> Vec<(String, DType, Vec<u8>)> {
    let mut all: Vec<(String, DType, Vec<u8>)> = bytes
        .iter()
        .map(|(name, bytes)| (format!("weight.{name}"), DType::U8, bytes.to_vec()))
        .collect();
    all.sort();
    all
}

fn taken(tensors: &HashMap<String, Bytes>) -> HashMap<String, Bytes> {
    let weight = |(name, bytes): (&String, &Bytes)| {
        Some((name.strip_prefix("weight.")?.to_string(), bytes.clone()))
    };
    tensors.iter().filter_map(weight).collect()
}
