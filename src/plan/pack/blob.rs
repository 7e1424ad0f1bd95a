//! The blob: sections filled in any order, each from its start to its end.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;
use sha2::{Digest, Sha256};

use super::Result;
use crate::plan::{PlanError, Section};
use crate::weights::hash::to_hex;

/// Bytes that a section gathers before they are written.
const GATHERED: usize = 1 << 20;

/// Where packed bytes go.
pub enum Sink {
    /// A file.
    File {
        /// The open file.
        file: File,
        /// Its path, for messages.
        path: PathBuf,
    },
    /// Memory, for tests and small models.
    Memory(Vec<u8>),
}

impl Sink {
    /// A new file.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|source| PlanError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        Ok(Self::File {
            file,
            path: path.to_path_buf(),
        })
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Sink::File { file, path } => {
                let written = file
                    .seek(SeekFrom::Start(offset))
                    .and_then(|_| file.write_all(bytes));
                written.map_err(|source| PlanError::Io {
                    path: path.clone(),
                    source,
                })
            }
            Sink::Memory(memory) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(bytes.len());
                if memory.len() < end {
                    memory.resize(end, 0);
                }
                memory[start..end].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Sets the size, once all is written.
    pub(super) fn end(&mut self, bytes: u64) -> Result<()> {
        match self {
            Sink::File { file, path } => {
                let done = file.set_len(bytes).and_then(|()| file.sync_all());
                done.map_err(|source| PlanError::Io {
                    path: path.clone(),
                    source,
                })
            }
            Sink::Memory(memory) => {
                memory.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
                Ok(())
            }
        }
    }
}

/// A section on its way.
struct Filling {
    name: String,
    offset: u64,
    bytes: u64,
    written: u64,
    gathered: Vec<u8>,
    hash: Sha256,
}

/// The sections of one weight.
pub(super) struct Sections<'a> {
    sink: &'a mut Sink,
    weight: String,
    sections: Vec<Filling>,
}

impl<'a> Sections<'a> {
    pub(super) fn new(sink: &'a mut Sink, weight: &str, sections: &[Section]) -> Self {
        let filling = |s: &Section| Filling {
            name: s.name.clone(),
            offset: s.offset,
            bytes: s.bytes,
            written: 0,
            gathered: Vec::new(),
            hash: Sha256::new(),
        };
        Self {
            sink,
            weight: weight.to_string(),
            sections: sections.iter().map(filling).collect(),
        }
    }

    /// Appends to a section.
    ///
    /// # Errors
    /// There is no such section, or it is full: the data do not fit what the shapes say.
    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let fault = |problem: String| PlanError::weight(&self.weight, problem);
        let Some(section) = self.sections.iter_mut().find(|s| s.name == name) else {
            return Err(fault(format!("it has no section `{name}`")));
        };
        let end = section.written + (section.gathered.len() + bytes.len()) as u64;
        if end > section.bytes {
            let problem = format!(
                "section `{name}` takes {} bytes, and there are more",
                section.bytes
            );
            return Err(fault(problem));
        }
        section.hash.update(bytes);
        section.gathered.extend_from_slice(bytes);
        if section.gathered.len() >= GATHERED {
            self.sink
                .write(section.offset + section.written, &section.gathered)?;
            section.written += section.gathered.len() as u64;
            section.gathered.clear();
        }
        Ok(())
    }

    pub(super) fn floats(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(name, &bytes)
    }

    pub(super) fn halves(&mut self, name: &str, values: &[f16]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(name, &bytes)
    }

    pub(super) fn words(&mut self, name: &str, values: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(name, &bytes)
    }

    /// Writes what is gathered, and gives each section's bytes and hash. A section that is shorter than its
    /// room keeps its own length.
    pub(super) fn finish(mut self) -> Result<Vec<(u64, String)>> {
        let mut hashes = Vec::with_capacity(self.sections.len());
        for index in 0..self.sections.len() {
            let section = &mut self.sections[index];
            self.sink
                .write(section.offset + section.written, &section.gathered)?;
            let hash = std::mem::take(&mut section.hash);
            let bytes = section.written + section.gathered.len() as u64;
            hashes.push((bytes, to_hex(&hash.finalize())));
        }
        Ok(hashes)
    }
}
