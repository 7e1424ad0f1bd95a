//! What lives between two segments, of all batches: in memory, and beyond a budget in a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::{CalibError, Result};
use crate::exec::kernels::gemm;
use crate::exec::segments::Held;
use crate::exec::{Data, Tensor};

/// Values of all batches. What is spilled stays f32, so that nothing depends on the budget.
pub struct Hold {
    batches: Vec<Place>,
    budget: u64,
    used: u64,
    file: Option<File>,
    path: PathBuf,
    /// Where each batch has room in the file, and how much.
    rooms: Vec<Option<(u64, u64)>>,
    end: u64,
    /// Bytes that were written to the file, all in all.
    pub spilled: u64,
}

enum Place {
    Memory(Held),
    /// Slots, shapes and types; the data in order at the batch's place in the file.
    Disk(Vec<(usize, Vec<usize>, Kind)>),
}

#[derive(Clone, Copy)]
enum Kind {
    F32,
    I64,
    Bool,
}

impl Hold {
    /// Nothing yet, of so many batches; the file is made once the budget (bytes) is used up.
    pub fn new(batches: usize, budget: u64, path: &Path) -> Self {
        let empty = || Place::Memory(Held::default());
        Self {
            batches: std::iter::repeat_with(empty).take(batches).collect(),
            budget,
            used: 0,
            file: None,
            path: path.to_path_buf(),
            rooms: vec![None; batches],
            end: 0,
            spilled: 0,
        }
    }

    /// Takes a batch's values out.
    pub fn take(&mut self, batch: usize) -> Result<Held> {
        let empty = Place::Memory(Held::default());
        let Some(place) = self.batches.get_mut(batch) else {
            return Ok(Held::default());
        };
        match std::mem::replace(place, empty) {
            Place::Memory(held) => {
                self.used = self.used.saturating_sub(held.bytes() as u64);
                Ok(held)
            }
            Place::Disk(outline) => self.read(batch, outline),
        }
    }

    /// Puts a batch's values in.
    pub fn put(&mut self, batch: usize, held: Held) -> Result<()> {
        let bytes = held.bytes() as u64;
        let place = if self.used + bytes <= self.budget {
            self.used += bytes;
            Place::Memory(held)
        } else {
            self.write(batch, &held)?;
            let outline = held.values.into_iter().map(|(slot, tensor)| {
                let kind = match tensor.data {
                    Data::F32(_) => Kind::F32,
                    Data::I64(_) => Kind::I64,
                    Data::Bool(_) => Kind::Bool,
                };
                (slot, tensor.shape, kind)
            });
            Place::Disk(outline.collect())
        };
        if let Some(at) = self.batches.get_mut(batch) {
            *at = place;
        }
        Ok(())
    }

    fn write(&mut self, batch: usize, held: &Held) -> Result<()> {
        let fault = CalibError::io(&self.path);
        let bytes = held.bytes() as u64;
        let known = self.rooms.get(batch).copied().flatten();
        let (at, _) = known.filter(|(_, room)| *room >= bytes).unwrap_or_else(|| {
            let at = self.end;
            self.end += bytes;
            (at, bytes)
        });
        if let Some(room) = self.rooms.get_mut(batch) {
            *room = Some((at, known.map_or(bytes, |(_, room)| room.max(bytes))));
        }
        let result = (|| {
            if self.file.is_none() {
                let options = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&self.path);
                self.file = Some(options?);
            }
            let Some(file) = &mut self.file else {
                return Ok(());
            };
            file.seek(SeekFrom::Start(at))?;
            for (_, tensor) in &held.values {
                match &tensor.data {
                    Data::F32(v) => file.write_all(gemm::bytes(v))?,
                    Data::I64(v) => {
                        let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
                        file.write_all(&bytes)?;
                    }
                    Data::Bool(v) => {
                        let bytes: Vec<u8> = v.iter().map(|&x| u8::from(x)).collect();
                        file.write_all(&bytes)?;
                    }
                }
            }
            Ok(())
        })();
        self.spilled += bytes;
        result.map_err(fault)
    }

    fn read(&mut self, batch: usize, outline: Vec<(usize, Vec<usize>, Kind)>) -> Result<Held> {
        let at = self
            .rooms
            .get(batch)
            .copied()
            .flatten()
            .map_or(0, |(at, _)| at);
        let result = (|| {
            let Some(file) = &mut self.file else {
                return Ok(Held::default());
            };
            file.seek(SeekFrom::Start(at))?;
            let mut values = Vec::with_capacity(outline.len());
            for (slot, shape, kind) in outline {
                let count: usize = shape.iter().product();
                let size = match kind {
                    Kind::F32 => 4,
                    Kind::I64 => 8,
                    Kind::Bool => 1,
                };
                let mut bytes = vec![0u8; count * size];
                file.read_exact(&mut bytes)?;
                let data = match kind {
                    Kind::F32 => Data::F32(
                        bytes
                            .as_chunks::<4>()
                            .0
                            .iter()
                            .map(|b| f32::from_le_bytes(*b))
                            .collect(),
                    ),
                    Kind::I64 => Data::I64(
                        bytes
                            .as_chunks::<8>()
                            .0
                            .iter()
                            .map(|b| i64::from_le_bytes(*b))
                            .collect(),
                    ),
                    Kind::Bool => Data::Bool(bytes.into_iter().map(|b| b != 0).collect()),
                };
                values.push((slot, Tensor { shape, data }));
            }
            Ok(Held { values })
        })();
        result.map_err(CalibError::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spilled_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut hold = Hold::new(3, 40, &folder.path().join("held"));
        let held = |n: usize| Held {
            values: vec![
                (
                    7,
                    Tensor::f32(&[1, n], (0..n).map(|i| i as f32 / 3.0).collect()),
                ),
                (8, Tensor::i64(&[2], vec![-1, 1 << 40])),
                (
                    9,
                    Tensor {
                        shape: vec![3],
                        data: Data::Bool(vec![true, false, true]),
                    },
                ),
            ],
        };
        for round in 0..3 {
            for batch in 0..3 {
                if round > 0 {
                    let found = hold.take(batch).expect("there");
                    assert_eq!(found, held(4 * (batch + round - 1) + 1));
                }
                hold.put(batch, held(4 * (batch + round) + 1)).expect("put");
            }
        }
        assert!(hold.spilled > 0);
        assert!(hold.take(9).expect("nothing").values.is_empty());
    }
}
