//! Where the terms that passes make go.

use std::collections::HashSet;
use std::path::Path;

use super::{Journal, JournalError, Record};
use crate::ir::{Attrs, Module, Storage, Term, Weight, WeightId};
use crate::pass::Remark;
use crate::pass::terms::{BadSpec, TermData, TermSpec};
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
    },
    /// Keeps nothing but content hashes: for text that shows structure.
    Hashes,
}

impl Sink {
    /// A sink that keeps no data.
    pub fn hashes() -> Self {
        Self {
            names: HashSet::new(),
            kind: Kind::Hashes,
        }
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
        let entries = done.iter().flat_map(|r| r.entries.clone()).collect();
        Ok(Self {
            names: HashSet::new(),
            kind: Kind::Shards {
                writer: Box::new(ShardWriter::resume(directory, options, entries)?),
                journal,
                done,
            },
        })
    }

    /// Records of finished sites that a resumed run need not do again.
    pub fn take_done(&mut self) -> Vec<Record> {
        match &mut self.kind {
            Kind::Shards { done, .. } => std::mem::take(done),
            Kind::Hashes => Vec::new(),
        }
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

    /// Stores a site's terms, each in row tiles, and returns them as the IR has them; their weights are added to the module.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn commit(
        &mut self,
        module: &mut Module,
        number: usize,
        stem: &str,
        terms: Option<Vec<Vec<TermData>>>,
        report: &SiteReport,
        remarks: &[Remark],
    ) -> Result<Option<Vec<Term>>, SinkError> {
        let mut specs: Option<Vec<TermSpec>> = terms.as_ref().map(|_| Vec::new());
        let mut entries = Vec::new();
        let mut made = Vec::new();
        for (index, tiles) in terms.into_iter().flatten().enumerate() {
            let Some((spec, tensors)) = TermData::tiles_into_parts(tiles)? else {
                continue;
            };
            let mut ids = Vec::with_capacity(tensors.len());
            for tensor in tensors {
                let name = self.tensor_name(stem, tensor.suffix, index);
                let (dtype, shape) = (tensor.dtype, tensor.shape);
                let mut sha256 = None;
                match &mut self.kind {
                    Kind::Shards { writer, .. } => {
                        writer.begin(&name, dtype, &shape)?;
                        for piece in tensor.pieces {
                            writer.write(&piece)?;
                        }
                        entries.push(writer.end()?);
                    }
                    Kind::Hashes => {
                        sha256 = Some(Digest::of(&tensor.pieces.concat()).to_hex());
                    }
                }
                ids.push(add_weight(module, name, dtype, shape, sha256));
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
                site: number,
                terms: specs,
                entries,
                report: report.clone(),
                remarks: remarks.to_vec(),
            })?;
        }
        Ok(keep.then_some(made))
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

/// The terms of a recorded site; their weights are added to the module.
///
/// # Errors
/// The record is damaged.
pub fn restore(module: &mut Module, record: &Record) -> Result<Option<Vec<Term>>, SinkError> {
    let Some(specs) = &record.terms else {
        return Ok(None);
    };
    let mut entries = record.entries.iter();
    let mut terms = Vec::with_capacity(specs.len());
    for spec in specs {
        let ids: Vec<WeightId> = entries
            .by_ref()
            .take(spec.tensors())
            .map(|e: &Entry| add_weight(module, e.name.clone(), e.dtype, e.shape.clone(), None))
            .collect();
        terms.push(spec.term(&ids)?);
    }
    Ok(Some(terms))
}

fn add_weight(
    module: &mut Module,
    name: String,
    dtype: DType,
    dims: Vec<u64>,
    sha256: Option<String>,
) -> WeightId {
    module.add_weight(Weight {
        name,
        dtype,
        dims,
        storage: Storage::Absent,
        sha256,
        meta: Attrs::new(),
    })
}
