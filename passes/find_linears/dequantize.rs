//! Weights behind DequantizeLinear, decoded into weights of their own.

use super::coded::is_contrib;
use super::{Constant, Finder, int};
use crate::ir::{Attr, Attrs, OnnxOp, OpKind, Operand, Storage, ValueId, Weight, WeightId};
use crate::numeric::quant::unpack_row;
use crate::weights::read::{decode_f32, encode_f32};
use crate::weights::{DType, MappedFile};

/// Decoded weights are held in memory, so larger ones stay as they are.
const MAX_BYTES: u64 = 1 << 28;

impl Finder<'_> {
    /// The float weight that a DequantizeLinear node of constants makes.
    pub(super) fn dequantized(
        &mut self,
        inputs: &[Operand],
        onnx: &OnnxOp,
        depth: usize,
    ) -> Option<Constant> {
        if let Some(found) = self.dequantized.get(inputs) {
            return Some(found.clone());
        }
        let quantized = self
            .constant_behind(*inputs.first()?, depth)
            .filter(|c| !c.transposed)?;
        let scale = self
            .constant_behind(*inputs.get(1)?, depth)
            .filter(|c| !c.transposed)?;
        let zero = match inputs.get(2) {
            None | Some(Operand::None) => None,
            Some(&operand) => {
                let zero = self.constant_behind(operand, depth);
                Some(zero.filter(|c| !c.transposed)?)
            }
        };
        let weight = self.module.weight(quantized.weight)?;
        let &[rows, cols] = weight.dims.as_slice() else {
            return None;
        };
        let elements = weight.elements()?;
        if elements.checked_mul(4)? > MAX_BYTES || !weight.dtype.is_integer() {
            return None;
        }
        let scales = self.values(scale.weight)?;
        let zeros = match &zero {
            None => Vec::new(),
            Some(zero) => self
                .values(zero.weight)
                .filter(|zeros| zeros.len() == scales.len())?,
        };
        let mut values = self.values(quantized.weight)?;
        let grid = Grid::new(rows, cols, &scale.dims, onnx)?;
        for (at, value) in values.iter_mut().enumerate() {
            let index = grid.index(at as u64)?;
            let zero = if zeros.is_empty() {
                0.0
            } else {
                *zeros.get(index)?
            };
            *value = (*value - zero) * scales.get(index)?;
        }
        let bytes = encode_f32(scale.dtype, &values)?;
        let mut meta = Attrs::new();
        meta.set("dequantized", Attr::str(&weight.name));
        let mut spelled = Attrs::new();
        let parts = [
            ("codes", Some(&quantized)),
            ("scales", Some(&scale)),
            ("zeros", zero.as_ref()),
        ];
        for (name, part) in parts {
            if let Some(part) = part {
                spelled.set(name, Attr::Weight(part.weight));
            }
        }
        spelled.set("attrs", Attr::Dict(onnx.attrs.clone()));
        let name = self.weight_name(format!("{}.dequantized", weight.name));
        let id = self.patch.add_weight(Weight {
            name,
            dtype: scale.dtype,
            dims: weight.dims.clone(),
            storage: Storage::Inline(bytes),
            sha256: None,
            meta,
        });
        let mut chain = quantized.chain;
        chain.extend(scale.chain);
        let found = Constant {
            weight: id,
            dims: vec![rows, cols],
            transposed: false,
            dtype: scale.dtype,
            chain,
            dequantize: Some(spelled),
        };
        self.dequantized.insert(inputs.to_vec(), found.clone());
        Some(found)
    }

    /// The float weight that a GatherBlockQuantized node of constants makes: the narrow side of a
    /// table of low rank, which is read by columns.
    pub(super) fn gathered(&mut self, value: ValueId, depth: usize) -> Option<Constant> {
        let id = *self.makers.get(&value)?;
        let op = self
            .graph
            .op(id)
            .filter(|op| is_contrib(op, "GatherBlockQuantized"))?;
        let key = op.inputs.clone();
        if let Some(found) = self.dequantized.get(&key) {
            return Some(found.clone());
        }
        let &[codes, indices, scales] = key.as_slice() else {
            return None;
        };
        let OpKind::Onnx(onnx) = &op.kind else {
            return None;
        };
        let bits = u8::try_from(int(onnx, "bits", 4)).ok()?;
        let block = usize::try_from(int(onnx, "block_size", 128)).ok()?;
        let places = int(onnx, "gather_axis", 0) == 0 && int(onnx, "quantize_axis", 1) == 1;
        if !places || ![2, 4, 8].contains(&bits) || block == 0 {
            return None;
        }
        let codes = self.constant_behind(codes, depth + 1)?;
        let indices = self.constant_behind(indices, depth + 1)?;
        let scales = self.constant_behind(scales, depth + 1)?;
        let stored = self
            .bytes(codes.weight)
            .filter(|_| codes.dtype == DType::U8)?;
        let &[_, row_bytes] = codes.dims.as_slice() else {
            return None;
        };
        let row_bytes = usize::try_from(row_bytes).ok().filter(|n| *n > 0)?;
        let cols = row_bytes.checked_mul(8)? / usize::from(bits);
        let (rows, steps) = (self.values(indices.weight)?, self.values(scales.weight)?);
        let too_large = (rows.len() * cols) as u64 > MAX_BYTES / 4;
        if indices.dims.len() != 1 || indices.dtype != DType::I64 || too_large {
            return None;
        }
        let middle = f32::from(1u8 << (bits - 1));
        let mut values = Vec::with_capacity(rows.len() * cols);
        let mut row_codes = vec![0; cols];
        for row in rows {
            let row = row as usize;
            unpack_row(bits, stored.chunks(row_bytes).nth(row)?, &mut row_codes);
            let steps = steps.chunks(cols.div_ceil(block)).nth(row)?;
            for (col, code) in row_codes.iter().enumerate() {
                values.push((f32::from(*code) - middle) * steps.get(col / block)?);
            }
        }
        let bytes = encode_f32(scales.dtype, &values)?;
        let name = &self.module.weight(codes.weight)?.name;
        let name = self.weight_name(format!("{name}.dequantized"));
        let dims = vec![*indices.dims.first()?, cols as u64];
        let weight = self.patch.add_weight(Weight {
            name,
            dtype: scales.dtype,
            dims: dims.clone(),
            storage: Storage::Inline(bytes),
            sha256: None,
            meta: Attrs::new(),
        });
        let parts = [codes.chain, indices.chain, scales.chain, vec![id]];
        let found = Constant {
            weight,
            dims,
            transposed: false,
            dtype: scales.dtype,
            chain: parts.concat(),
            dequantize: None,
        };
        self.dequantized.insert(key, found.clone());
        Some(found)
    }

    /// All elements of a weight as f32.
    pub(super) fn values(&self, id: WeightId) -> Option<Vec<f32>> {
        let weight = self.module.weight(id)?;
        let mut values = vec![0.0; usize::try_from(weight.elements()?).ok()?];
        let decoded = match &weight.storage {
            Storage::Inline(bytes) => decode_f32(weight.dtype, bytes, &mut values),
            Storage::File {
                path,
                offset,
                len,
                encoding: crate::ir::Encoding::Raw,
            } => {
                let file = MappedFile::open(&self.module.base_dir.join(&**path)).ok()?;
                decode_f32(weight.dtype, file.slice(*offset, *len).ok()?, &mut values)
            }
            _ => false,
        };
        decoded.then_some(values)
    }
}

/// Which scale an element of a matrix has.
struct Grid {
    cols: u64,
    row_block: u64,
    col_block: u64,
    per_row: u64,
}

impl Grid {
    fn new(rows: u64, cols: u64, scale_dims: &[u64], onnx: &OnnxOp) -> Option<Self> {
        let axis = int(onnx, "axis", 1).rem_euclid(2);
        let block = u64::try_from(int(onnx, "block_size", 0)).ok()?;
        let whole = |n: u64| n.max(1);
        let (row_block, col_block) = match (scale_dims, axis) {
            ([] | [1], _) if block == 0 => (whole(rows), whole(cols)),
            ([n], 0) if *n == rows => (1, whole(cols)),
            ([n], 1) if *n == cols => (whole(rows), 1),
            (&[n, m], 0) if block > 0 && n == rows.div_ceil(block) && m == cols => (block, 1),
            (&[n, m], 1) if block > 0 && n == rows && m == cols.div_ceil(block) => (1, block),
            _ => return None,
        };
        Some(Self {
            cols: whole(cols),
            row_block,
            col_block,
            per_row: cols.div_ceil(col_block),
        })
    }

    fn index(&self, at: u64) -> Option<usize> {
        let (row, col) = (at / self.cols, at % self.cols);
        usize::try_from(row / self.row_block * self.per_row + col / self.col_block).ok()
    }
}
