//! Packs weights into the form that kernels read, one matrix in memory at a time.
//!
//! A tile is 16 rows and 64 columns. Lane `l` of a warp, `g = l / 4`, `t = l % 4`, has rows `g` and
//! `g + 8` and of each 16 columns the four from `4 t` on: `k = 16 i + 4 t + b`. Row tile after row
//! tile, then column tile, then lane, so that a warp streams. `kernels/README.md` has all layouts.

mod blob;
mod codes;
mod dense;
mod low_rank;
pub(crate) mod recipe;
pub(crate) mod sizes;
mod sparse;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

pub use blob::Sink;

use self::blob::Sections;
use self::recipe::{PartTerms, Recipe, Stack, Tile};
use super::lower::Lowered;
use super::lower::terms::{format, matrix};
use super::{Blob, Plan, PlanError};
use crate::ir::{Graph, Matrix, Module, OpId, WeightId};
use crate::pass::terms::TermData;
use crate::store::Reader;
use crate::weights::read::decode_f32;

type Result<T> = std::result::Result<T, PlanError>;

/// Columns of a tile.
pub(crate) const TILE: usize = 64;
/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Name of the blob in a plan's folder.
pub const BLOB_FILE: &str = "weights.bin";

/// What weights are read with.
pub(crate) struct Source<'a> {
    pub(crate) module: &'a Module,
    pub(crate) graph: &'a Graph,
    pub(crate) reader: &'a Reader<'a>,
}

/// Packs all weights of a plan, and says in the plan where they are.
///
/// # Errors
/// A weight can't be read, or the blob not written; [`PlanError::Interrupted`] once `stop` is set.
pub fn pack(
    lowered: Lowered,
    module: &Module,
    reader: &Reader<'_>,
    sink: &mut Sink,
    stop: &AtomicBool,
    each: &mut dyn FnMut(&str, u64),
) -> Result<Plan> {
    let Lowered { mut plan, recipes } = lowered;
    let Some(graph) = module.graphs.first() else {
        return Err(PlanError::NotLanguageModel(
            "the module has no graph".to_string(),
        ));
    };
    let source = Source {
        module,
        graph,
        reader,
    };
    let mut end = 0;
    for (weight, recipe) in plan.weights.iter_mut().zip(&recipes) {
        if stop.load(Ordering::Relaxed) {
            return Err(PlanError::Interrupted);
        }
        each(&weight.name, weight.bytes());
        let mut out = Sections::new(sink, &weight.name, &weight.sections);
        match recipe {
            Recipe::Matrix(stack) => source.stack(stack, &mut out)?,
            Recipe::Dense(part) => source.rows(part, &mut out)?,
            Recipe::Vectors { parts, width } => {
                for (section, id, one) in parts {
                    let mut values = source.floats(*id)?;
                    if values.len() as u64 != *width {
                        let problem = format!("{} values where {width} are used", values.len());
                        return Err(PlanError::weight(&weight.name, problem));
                    }
                    if *one {
                        values.iter_mut().for_each(|v| *v += 1.0);
                    }
                    out.floats(section, &values)?;
                }
            }
            Recipe::Inline { section, words, .. } => out.words(section, words)?,
        }
        let hashes = out.finish()?;
        for (section, (bytes, hash)) in weight.sections.iter_mut().zip(hashes) {
            // How many runs of sparse entries there are is known now.
            if bytes != section.bytes && section.name != "s" {
                let problem = format!(
                    "section `{}` got {bytes} of {} bytes",
                    section.name, section.bytes
                );
                return Err(PlanError::weight(&weight.name, problem));
            }
            end = end.max(section.offset.saturating_add(super::aligned(section.bytes)));
            section.bytes = bytes;
            section.sha256 = Some(hash);
        }
    }
    sink.end(end)?;
    plan.blob = Some(Blob {
        file: BLOB_FILE.to_string(),
        bytes: end,
    });
    Ok(plan)
}

/// The table of a trellis's columns: of each 256 where their tiles start, in 32 bytes from the first of
/// a row tile, their bits per weight, four bits for each 16, and the most of all, with the sum above it.
fn trellis_columns(bits: &[u8]) -> Vec<u8> {
    let sum = |bits: &[u8]| bits.iter().map(|&b| u32::from(b)).sum::<u32>();
    let widest = u32::from(bits.iter().copied().max().unwrap_or(0));
    let mut table = Vec::new();
    for (unit, some) in bits.chunks(16).enumerate() {
        let nibbles = |half: &[u8]| {
            let places = half.iter().zip((0..32).step_by(4));
            places.fold(0, |word, (&b, at)| word | u32::from(b) << at)
        };
        let (low, high) = some.split_at(some.len().min(8));
        let start = sum(&bits[..unit * 16]);
        for word in [start, nibbles(low), nibbles(high), widest | sum(bits) << 8] {
            table.extend(word.to_le_bytes());
        }
    }
    table
}

impl Source<'_> {
    /// A small weight as f32.
    pub(crate) fn floats(&self, id: WeightId) -> Result<Vec<f32>> {
        let absent = || crate::store::StoreError::Absent(id.to_string());
        let weight = self.module.weight(id).ok_or_else(absent)?;
        let bytes = self.reader.bytes(self.module, id)?;
        let count = weight.elements().and_then(|n| usize::try_from(n).ok());
        let mut values = vec![0f32; count.unwrap_or(0).min(bytes.len())];
        match decode_f32(weight.dtype, &bytes, &mut values) {
            true => Ok(values),
            false => Err(PlanError::weight(
                &weight.name,
                format!("{} can't be read as numbers", weight.dtype),
            )),
        }
    }

    fn matrix(&self, op: OpId) -> Result<(&Matrix, &str)> {
        matrix(self.graph, op)
    }

    /// The data of a term; a rotated one's without its rotation.
    fn term(&self, op: OpId, index: usize) -> Result<TermData> {
        let (matrix, name) = self.matrix(op)?;
        let term = matrix.terms.get(index);
        let term =
            term.ok_or_else(|| PlanError::weight(name, format!("it has no term {index}")))?;
        match self.reader.term(self.module, matrix, term)? {
            TermData::Rotated(_, inner) => Ok(*inner),
            data => Ok(data),
        }
    }

    fn stack(&self, stack: &Stack, out: &mut Sections<'_>) -> Result<()> {
        let mut low_rank = low_rank::Packer::default();
        let mut sparse = sparse::Packer::default();
        for parts in &stack.experts {
            let tiles = stack.tiles(parts);
            if stack.base.is_some() {
                self.base(stack, parts, &tiles, out)?;
            }
            let mut data: HashMap<(OpId, usize), TermData> = HashMap::new();
            for part in parts {
                for &term in part.low_rank.iter().chain(&part.sparse) {
                    let key = (part.part.op, term);
                    if let std::collections::hash_map::Entry::Vacant(slot) = data.entry(key) {
                        slot.insert(self.term(part.part.op, term)?);
                    }
                }
            }
            if let Some(formats) = stack.factors {
                low_rank.expert(self, parts, &tiles, formats, &data, out)?;
            }
            if stack.sparse {
                sparse.expert(stack.cols, parts, &tiles, &data, out)?;
            }
            if stack.bias {
                self.bias(stack, parts, &tiles, out)?;
            }
        }
        if stack.factors.is_some() {
            low_rank.end(stack.experts.len(), out)?;
        }
        if stack.sparse {
            sparse.end(out)?;
        }
        Ok(())
    }

    /// Codes or entries of every tile, with their scales.
    fn base(
        &self,
        stack: &Stack,
        parts: &[PartTerms],
        tiles: &[Tile],
        out: &mut Sections<'_>,
    ) -> Result<()> {
        let Some(base) = stack.base else {
            return Ok(());
        };
        if matches!(base.format, format::F16 | format::BF16 | format::F32) {
            return dense::pack(self, &base, parts, tiles, out);
        }
        let mut data = HashMap::new();
        for part in parts {
            let Some(term) = part.base else { continue };
            let key = (part.part.op, term);
            if let std::collections::hash_map::Entry::Vacant(slot) = data.entry(key) {
                slot.insert(self.term(part.part.op, term)?);
            }
        }
        let of = |part: &PartTerms| data.get(&(part.part.op, part.base.unwrap_or(0)));
        if base.format == format::TRELLIS {
            for part in parts {
                let Some(TermData::Trellis(trellis)) = of(part) else {
                    return Err(PlanError::weight(
                        &part.part.name,
                        "its trellis codes are missing",
                    ));
                };
                out.put("q", &trellis.codes)?;
                out.halves("scales", &trellis.scales)?;
                out.put("zeros", &trellis_columns(&trellis.bits))?;
            }
            return Ok(());
        }
        let mut matrices = Vec::with_capacity(parts.len());
        for part in parts {
            match of(part) {
                Some(TermData::Quant(quant)) => matrices.push(quant),
                _ => return Err(PlanError::weight(&part.part.name, "its codes are missing")),
            }
        }
        codes::pack(&matrices, tiles, out)
    }

    fn bias(
        &self,
        stack: &Stack,
        parts: &[PartTerms],
        tiles: &[Tile],
        out: &mut Sections<'_>,
    ) -> Result<()> {
        let scale = f32::from_bits(stack.scale_bits);
        let mut biases = Vec::with_capacity(parts.len());
        for part in parts {
            biases.push(match part.bias {
                Some(id) => self.floats(id)?,
                None => Vec::new(),
            });
        }
        for tile in tiles {
            let mut rows = [0f32; ROWS];
            let bias = biases.get(tile.part).map_or(&[][..], Vec::as_slice);
            for (r, row) in rows.iter_mut().enumerate().take(tile.count as usize) {
                *row = bias.get(tile.row as usize + r).copied().unwrap_or(0.0) / scale;
            }
            out.floats("bias", &rows)?;
        }
        Ok(())
    }

    /// All terms of a table multiplied out, as f16.
    fn rows(&self, part: &super::lower::macros::Part, out: &mut Sections<'_>) -> Result<()> {
        let merged = dense::Merged::read(self, part.op)?;
        let (matrix, _) = self.matrix(part.op)?;
        let cols = usize::try_from(matrix.in_features).unwrap_or(0);
        let rows = usize::try_from(part.rows.end).unwrap_or(0);
        let mut start = usize::try_from(part.rows.start).unwrap_or(0);
        // Rows of a rotated term come in blocks of up to 512.
        while start < rows {
            let end = (start + 512).min(rows);
            let values = merged.rows(start..end, cols)?;
            for tile in values.chunks(ROWS * cols.max(1)) {
                out.put("q", &dense::tile(format::F16, tile, cols))?;
            }
            start = end;
        }
        Ok(())
    }
}
