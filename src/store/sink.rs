//! Where the terms that passes make go.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::scratch::{self, Scratch};
use super::{Journal, JournalError, Record};
use crate::ir::{Attrs, Module, Storage, Term, Weight, WeightId};
use crate::pass::Remark;
use crate::pass::terms::{BadSpec, TensorData, TermData, TermSpec};
use crate::report::SiteReport;
use crate::weights::writer::{Entry, Finished};
use crate::weights::{DType, Digest, ShardWriter, WeightsError, WriterOptions};

/// Why a sink failed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The output cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The journal cannot be written, or belongs to another run.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Row tiles do not make a term.
    #[error(transparent)]
    Tiles(#[from] crate::pass::PassError),
    /// The journal's records make no terms.
    #[error(transparent)]
    Spec(#[from] BadSpec),
    /// The journal counts residuals that are not there.
    #[error(
        "{}: shorter than the journal says; start the run anew without --resume",
        .0.display()
    )]
    Scratch(PathBuf),
}

/// Name or suffix, element type and shape of a tensor to come.
pub type TensorOutline = (String, DType, Vec<u64>);

/// The stem of a new tensor's name, and the rest of it.
pub type NewTensor = (String, TensorOutline);

/// File name of the journal in the store's directory.
pub const JOURNAL: &str = "journal.jsonl";

/// Takes the terms of finished sites, in order.
pub struct Sink {
    names: HashSet<String>,
    kind: Kind,
}

enum Kind {
    /// Streams them into the shards of a directory, with a journal.
    Shards {
        /// The shards.
        writer: Box<ShardWriter>,
        /// The journal.
        journal: Journal,
        /// Records of the interrupted run that this one goes on from.
        done: Vec<Record>,
        /// Where all of this is.
        directory: PathBuf,
        /// What a later stage takes up.
        scratch: Option<Scratch>,
    },
    /// Keeps nothing but content hashes: for text that shows structure.
    Hashes,
}

/// What has become of a site.
pub struct Done<'a> {
    /// Number of the stage.
    pub stage: usize,
    /// Number of the site in the stage.
    pub number: usize,
    /// What the names of its tensors start with.
    pub stem: &'a str,
    /// Its terms in row tiles; `None` where it stays as it was.
    pub terms: Option<Vec<Vec<TermData>>>,
    /// Whether a later stage takes the site up: until then nothing of it is part of the output.
    pub passes_on: bool,
    /// Weights of terms that earlier stages made.
    pub earlier: &'a [WeightId],
    /// Σ w² of the matrix that the stage began with.
    pub weight_squares: f64,
    /// What is reported of it.
    pub report: &'a SiteReport,
    /// What passes said of it.
    pub remarks: &'a [Remark],
}

impl Sink {
    /// A sink that keeps no data.
    pub fn hashes() -> Self {
        Self {
            names: HashSet::new(),
            kind: Kind::Hashes,
        }
    }

    /// Whether what it takes leaves memory.
    pub fn has_files(&self) -> bool {
        matches!(self.kind, Kind::Shards { .. })
    }

    /// Names that new tensors must not take: those of the module's weights.
    pub fn reserve_names(&mut self, module: &Module) {
        self.names
            .extend(module.weights.iter().map(|w| w.name.clone()));
    }

    /// A new store in an existing directory.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn create(
        directory: &Path,
        options: WriterOptions,
        fingerprint: &str,
    ) -> Result<Self, SinkError> {
        Ok(Self {
            names: HashSet::new(),
            kind: Kind::Shards {
                writer: Box::new(ShardWriter::create(directory, options)?),
                journal: Journal::create(&directory.join(JOURNAL), fingerprint)?,
                done: Vec::new(),
                directory: directory.to_path_buf(),
                scratch: None,
            },
        })
    }

    /// The store of an interrupted run of the same work.
    ///
    /// # Errors
    /// There is none, it belongs to another run, or its files are damaged.
    pub fn resume(
        directory: &Path,
        options: WriterOptions,
        fingerprint: &str,
    ) -> Result<Self, SinkError> {
        let path = directory.join(JOURNAL);
        let (journal, done) = Journal::resume(&path, fingerprint)?;
        let written = |r: &Record| [r.moved.clone(), r.entries.clone()].concat();
        let entries: Vec<Entry> = done.iter().flat_map(written).collect();
        let passed = done.iter().flat_map(|r| &r.passed);
        Ok(Self {
            names: entries
                .iter()
                .chain(passed)
                .map(|e| e.name.clone())
                .collect(),
            kind: Kind::Shards {
                writer: Box::new(ShardWriter::resume(directory, options, entries)?),
                journal,
                done,
                directory: directory.to_path_buf(),
                scratch: None,
            },
        })
    }

    /// Records of a stage's finished sites that a resumed run need not do again.
    ///
    /// # Errors
    /// The residuals that they speak of are not there.
    pub fn take_done(&mut self, stage: usize) -> Result<Vec<Record>, SinkError> {
        let Kind::Shards {
            done,
            directory,
            scratch,
            ..
        } = &mut self.kind
        else {
            return Ok(Vec::new());
        };
        let (mine, later) = std::mem::take(done)
            .into_iter()
            .partition(|r| r.stage == stage);
        *done = later;
        let mine: Vec<Record> = mine;
        let passed: u64 = mine.iter().flat_map(|r| &r.passed).map(|e| e.bytes).sum();
        if passed > 0 {
            *scratch = Some(Scratch::open(directory, stage, passed)?);
        }
        Ok(mine)
    }

    /// Says which tensors will come: `(stem, suffix)` of new ones, then names of copies. Used to hash
    /// while writing; a wrong guess costs nothing but time.
    pub fn foresee(&mut self, new: Vec<NewTensor>, copies: Vec<TensorOutline>) {
        let Kind::Shards { writer, .. } = &mut self.kind else {
            return;
        };
        let named =
            |(stem, (suffix, dtype, shape)): NewTensor| (format!("{stem}.{suffix}"), dtype, shape);
        let all: Vec<TensorOutline> = new.into_iter().map(named).chain(copies).collect();
        writer.foresee(&all);
    }

    /// Stores a site's terms and returns them as the IR has them; their weights are added to the module.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn commit(
        &mut self,
        module: &mut Module,
        done: Done<'_>,
    ) -> Result<Option<Vec<Term>>, SinkError> {
        let mut specs: Option<Vec<TermSpec>> = done.terms.as_ref().map(|_| Vec::new());
        let (mut entries, mut passed) = (Vec::new(), Vec::new());
        let moved = match done.terms.is_some() && !done.passes_on {
            true => self.take_over(module, done.earlier)?,
            false => Vec::new(),
        };
        let mut made = Vec::new();
        let count = done.terms.as_ref().map_or(0, Vec::len);
        // Of text that shows structure only the residual is read again.
        let in_files = matches!(self.kind, Kind::Shards { .. });
        for (index, tiles) in done.terms.into_iter().flatten().enumerate() {
            let Some((spec, tensors)) = TermData::tiles_into_parts(tiles)? else {
                continue;
            };
            let fleeting = done.passes_on && (in_files || index + 1 == count);
            let mut ids = Vec::with_capacity(tensors.len());
            for tensor in tensors {
                let name = self.tensor_name(done.stem, &tensor.suffix, index);
                if fleeting {
                    let (entry, storage) = self.pass_on(done.stage, name, tensor)?;
                    ids.push(add_weight(module, &entry, storage, None));
                    passed.push(entry);
                } else {
                    let (entry, sha256) = self.store(name, tensor)?;
                    ids.push(add_weight(module, &entry, Storage::Absent, sha256));
                    entries.push(entry);
                }
            }
            made.push(spec.term(&ids)?);
            specs.get_or_insert_default().push(spec);
        }
        let keep = specs.is_some();
        if let Kind::Shards {
            writer, journal, ..
        } = &mut self.kind
        {
            writer.position()?;
            journal.add(&Record {
                stage: done.stage,
                site: done.number,
                terms: specs,
                moved,
                entries,
                passed,
                weight_squares: done.weight_squares,
                report: done.report.clone(),
                remarks: done.remarks.to_vec(),
            })?;
        }
        Ok(keep.then_some(made))
    }

    /// Stores what earlier stages made of a site whose terms are kept.
    fn take_over(
        &mut self,
        module: &mut Module,
        weights: &[WeightId],
    ) -> Result<Vec<Entry>, SinkError> {
        let mut moved = Vec::new();
        for &id in weights {
            let (Kind::Shards { writer, .. }, Some(weight)) = (&mut self.kind, module.weight(id))
            else {
                continue;
            };
            let Storage::File {
                path, offset, len, ..
            } = &weight.storage
            else {
                continue;
            };
            if scratch::in_scratch(&weight.storage) {
                writer.begin(&weight.name, weight.dtype, &weight.dims)?;
                let path = Path::new(path.as_ref());
                scratch::read(path, *offset, *len, |piece| writer.write(piece))?;
                moved.push(writer.end()?);
                set_storage(module, id, Storage::Absent);
            }
        }
        Ok(moved)
    }

    /// Stores a tensor; gives its hash where that is all that is kept of it.
    fn store(
        &mut self,
        name: String,
        tensor: TensorData,
    ) -> Result<(Entry, Option<String>), SinkError> {
        match &mut self.kind {
            Kind::Shards { writer, .. } => {
                writer.begin(&name, tensor.dtype, &tensor.shape)?;
                for piece in tensor.pieces {
                    writer.write(&piece)?;
                }
                Ok((writer.end()?, None))
            }
            Kind::Hashes => {
                let hash = Digest::of_pieces(&tensor.pieces).to_hex();
                Ok((entry(name, &tensor, 0, 0), Some(hash)))
            }
        }
    }

    /// Keeps a tensor where a later stage finds it.
    fn pass_on(
        &mut self,
        stage: usize,
        name: String,
        tensor: TensorData,
    ) -> Result<(Entry, Storage), SinkError> {
        match &mut self.kind {
            Kind::Shards {
                directory, scratch, ..
            } => {
                let file = match scratch.take() {
                    Some(open) if open.stage == stage => open,
                    _ => Scratch::open(directory, stage, 0)?,
                };
                let file = scratch.insert(file);
                let offset = file.add(&tensor.pieces)?;
                let entry = entry(name, &tensor, stage, offset);
                let storage = scratch::storage(directory, stage, offset, entry.bytes);
                Ok((entry, storage))
            }
            Kind::Hashes => {
                let entry = entry(name, &tensor, stage, 0);
                Ok((entry, Storage::Inline(tensor.pieces.concat())))
            }
        }
    }

    /// The terms of a recorded site; their weights are added to the module.
    ///
    /// # Errors
    /// The record is damaged.
    pub fn restore(
        &self,
        module: &mut Module,
        record: &Record,
    ) -> Result<Option<Vec<Term>>, SinkError> {
        let (Some(specs), Kind::Shards { directory, .. }) = (&record.terms, &self.kind) else {
            return Ok(None);
        };
        for entry in &record.moved {
            let named = |w: &Weight| w.name == entry.name;
            if let Some(index) = module.weights.iter().position(named) {
                set_storage(module, WeightId::new(index), Storage::Absent);
            }
        }
        let stored = record.entries.iter().map(|e| (e, Storage::Absent));
        let passed = record.passed.iter().map(|e| {
            let place = scratch::storage(directory, record.stage, e.offset, e.bytes);
            (e, place)
        });
        let mut entries = stored.chain(passed);
        let mut terms = Vec::with_capacity(specs.len());
        for spec in specs {
            let ids: Vec<WeightId> = entries
                .by_ref()
                .take(spec.tensors())
                .map(|(e, storage)| add_weight(module, e, storage, None))
                .collect();
            terms.push(spec.term(&ids)?);
        }
        Ok(Some(terms))
    }

    /// Copies a weight that no pass touched, tile by tile.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn copy(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[u64],
        pieces: &mut dyn Iterator<Item = Result<&[u8], WeightsError>>,
    ) -> Result<(), SinkError> {
        if let Kind::Shards { writer, .. } = &mut self.kind {
            writer.begin(name, dtype, shape)?;
            for piece in pieces {
                writer.write(piece?)?;
            }
            writer.end()?;
        }
        Ok(())
    }

    /// Completes the shards; `None` where nothing was stored.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(self) -> Result<Option<Finished>, SinkError> {
        match self.kind {
            Kind::Shards { writer, .. } => Ok(Some(writer.finish()?)),
            Kind::Hashes => Ok(None),
        }
    }

    /// `stem.codes`; later terms of a site and taken names get a number: `stem.codes.1`.
    fn tensor_name(&mut self, stem: &str, suffix: &str, index: usize) -> String {
        let plain = format!("{stem}.{suffix}");
        let numbered = (index.max(1)..).map(|n| format!("{stem}.{suffix}.{n}"));
        let mut names = std::iter::once(plain).chain(numbered);
        let free = names.find(|n| !self.names.contains(n)).unwrap_or_default();
        self.names.insert(free.clone());
        free
    }
}

fn set_storage(module: &mut Module, id: WeightId, storage: Storage) {
    if let Some(weight) = module.weights.get_mut(id.index()) {
        weight.storage = storage;
    }
}

fn entry(name: String, tensor: &TensorData, stage: usize, offset: u64) -> Entry {
    Entry {
        name,
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        shard: u32::try_from(stage).unwrap_or(u32::MAX),
        offset,
        bytes: tensor.pieces.iter().map(|p| p.len() as u64).sum(),
    }
}

fn add_weight(
    module: &mut Module,
    entry: &Entry,
    storage: Storage,
    sha256: Option<String>,
) -> WeightId {
    module.add_weight(Weight {
        name: entry.name.clone(),
        dtype: entry.dtype,
        dims: entry.shape.clone(),
        storage,
        sha256,
        meta: Attrs::new(),
    })
}
