//! Codes of ONNX Runtime's own operators, read as they are: MatMulNBits and GatherBlockQuantized.

use half::f16;

use super::{Finder, SPELLING, has_references, int};
use crate::ir::{
    Attr, Attrs, Embedding, Layout, Linear, Matrix, OnnxOp, Op, OpId, OpKind, Operand, QuantTerm,
    Role, Storage, Term, Weight, WeightId,
};
use crate::numeric::quant::packed_len;
use crate::numeric::{Group, Scheme};
use crate::pass::Remark;
use crate::weights::{DType, MappedFile};

/// A matrix of codes, and what the finder needs besides.
struct Coded {
    matrix: Matrix,
    /// Element type of the scales, and so of activations.
    dtype: DType,
    chain: Vec<OpId>,
}

/// What a node says of its codes.
struct Shape {
    rows: u64,
    cols: u64,
    bits: u8,
    block: u32,
}

/// Whether a node is of ONNX Runtime's domain and has this name.
pub(super) fn is_contrib(op: &Op, name: &str) -> bool {
    matches!(&op.kind, OpKind::Onnx(onnx)
        if onnx.domain == "com.microsoft" && onnx.op_type == name && !has_references(onnx))
}

impl Finder<'_> {
    pub(super) fn nbits(&mut self, id: OpId, op: &Op) {
        let OpKind::Onnx(onnx) = &op.kind else { return };
        match self.nbits_linear(op, onnx) {
            Err(why) => self.missed(op, format!("MatMulNBits is left: {why}")),
            Ok((linear, coded)) => {
                let x = op.inputs.first().copied().unwrap_or(Operand::None);
                let spelled = spelling(coded.dtype);
                if linear.bias.is_none()
                    && let Some(end) = self.bias_behind(op, &linear)
                {
                    return self.with_bias(id, op, linear, x, spelled, end, &coded.chain);
                }
                let mut raised = op.clone();
                raised.kind = OpKind::Linear(linear);
                raised.inputs = vec![x];
                raised.meta.set(SPELLING, Attr::Dict(spelled));
                self.replace(id, raised, &coded.chain);
            }
        }
    }

    fn nbits_linear(&mut self, op: &Op, onnx: &OnnxOp) -> Result<(Linear, Coded), String> {
        let given = |at: usize| op.inputs.get(at).copied().unwrap_or(Operand::None);
        let shape = shape(int(onnx, "N", 0), int(onnx, "K", 0), onnx)?;
        if given(4) != Operand::None {
            return Err("it takes its inputs in an order of their own (g_idx)".to_owned());
        }
        if int(onnx, "weight_prepacked", 0) != 0 {
            return Err("its codes are packed for one kind of GPU".to_owned());
        }
        self.fits(given(0), -1, None, shape.cols)?;
        let bias = match given(5) {
            Operand::None => None,
            operand => {
                let found = self.constant(operand).filter(|c| c.dims == [shape.rows]);
                Some(
                    found
                        .ok_or("its bias is no constant of one value per output")?
                        .weight,
                )
            }
        };
        let blocks = shape.cols.div_ceil(u64::from(shape.block));
        let padded = packed_len(shape.bits, shape.block as usize) as u64 * blocks;
        let coded = self.coded(op, (given(1), given(2), given(3)), &shape, padded)?;
        let head = self.largest_table == (shape.rows, shape.cols);
        let linear = Linear {
            matrix: coded.matrix.clone(),
            bias,
            layout: Layout::Rows,
            scale: 1.0,
            role: if head { Role::Head } else { Role::Linear },
        };
        Ok((linear, coded))
    }

    pub(super) fn gather_codes(&mut self, id: OpId, op: &Op) {
        let OpKind::Onnx(onnx) = &op.kind else { return };
        let given = |at: usize| op.inputs.get(at).copied().unwrap_or(Operand::None);
        // A constant part of a table is decoded where it is used.
        let indices = self.constant(given(1));
        match self.table_of_codes(op, onnx) {
            Err(_) if indices.is_some() => {}
            Err(why) => self.missed(op, format!("GatherBlockQuantized is left: {why}")),
            Ok(coded) => {
                let matrix = coded.matrix;
                if matrix.out_features > self.largest_table.0 {
                    self.largest_table = (matrix.out_features, matrix.in_features);
                }
                let mut raised = op.clone();
                raised.kind = OpKind::Embedding(Embedding { matrix });
                raised.inputs = vec![given(1)];
                raised.meta.set(SPELLING, Attr::Dict(spelling(coded.dtype)));
                self.replace(id, raised, &coded.chain);
            }
        }
    }

    fn table_of_codes(&mut self, op: &Op, onnx: &OnnxOp) -> Result<Coded, String> {
        let given = |at: usize| op.inputs.get(at).copied().unwrap_or(Operand::None);
        let codes = self.constant(given(0)).ok_or("its codes are no constant")?;
        let &[rows, bytes] = codes.dims.as_slice() else {
            return Err(format!("its codes are {:?}, no matrix", codes.dims));
        };
        if codes.dtype != DType::U8 {
            return Err(format!("its codes are {}, not u8", codes.dtype));
        }
        if int(onnx, "gather_axis", 0) != 0 || ![1, -1].contains(&int(onnx, "quantize_axis", 1)) {
            return Err("it does not take rows of groups along rows".to_owned());
        }
        if self.constant(given(1)).is_some() || !matches!(given(1), Operand::Value(_)) {
            return Err("its indices are a constant".to_owned());
        }
        let bits = int(onnx, "bits", 4).max(1);
        let cols = i64::try_from(bytes.saturating_mul(8)).unwrap_or(0) / bits;
        let shape = shape(i64::try_from(rows).unwrap_or(0), cols, onnx)?;
        self.coded(op, (given(0), given(2), given(3)), &shape, bytes)
    }

    /// The matrix whose rows of codes take `row_bytes` each as stored.
    fn coded(
        &mut self,
        op: &Op,
        (codes, scales, zeros): (Operand, Operand, Operand),
        shape: &Shape,
        row_bytes: u64,
    ) -> Result<Coded, String> {
        let codes = self.constant(codes).ok_or("its codes are no constant")?;
        let scales = self.constant(scales).ok_or("its scales are no constant")?;
        let groups = shape.cols.div_ceil(u64::from(shape.block));
        let mut chain = codes.chain.clone();
        chain.extend(&scales.chain);
        let zeros = match zeros {
            Operand::None => None,
            operand => {
                let found = self.constant(operand);
                let found = found.ok_or("its zero points are no constant")?;
                let wanted = packed_len(shape.bits, groups as usize) as u64 * shape.rows;
                if found.dtype != DType::U8 || self.elements(found.weight) != Some(wanted) {
                    return Err(format!(
                        "its zero points are {}{:?}, not {wanted} bytes of codes",
                        found.dtype, found.dims
                    ));
                }
                chain.extend(found.chain);
                Some(found.weight)
            }
        };
        if codes.dtype != DType::U8
            || Some(self.elements(codes.weight)) != Some(row_bytes.checked_mul(shape.rows))
        {
            return Err(format!(
                "its codes are {}{:?}, not {} × {row_bytes} bytes",
                codes.dtype, codes.dims, shape.rows
            ));
        }
        let scheme = match zeros {
            None => Scheme::symmetric(shape.bits),
            Some(_) => Scheme::asymmetric(shape.bits),
        };
        let dtype = scales.dtype;
        let count = groups.saturating_mul(shape.rows);
        if self.elements(scales.weight) != Some(count) {
            return Err(format!("its scales are {:?}, not {count}", scales.dims));
        }
        let term = Term::Quant(QuantTerm {
            codes: self.unpadded(codes.weight, shape, row_bytes)?,
            scales: self.halves(scales.weight, "scales", Some(op))?,
            zeros,
            scheme,
            group: Group::Size(shape.block),
            rotation: None,
        });
        let matrix = Matrix {
            out_features: shape.rows,
            in_features: shape.cols,
            terms: vec![term],
        };
        Ok(Coded {
            matrix,
            dtype,
            chain,
        })
    }

    fn elements(&self, id: WeightId) -> Option<u64> {
        self.module.weight(id)?.elements()
    }

    /// Codes without what fills the last block.
    fn unpadded(&mut self, id: WeightId, shape: &Shape, stored: u64) -> Result<WeightId, String> {
        let wanted = packed_len(shape.bits, shape.cols as usize);
        if stored == wanted as u64 {
            return Ok(id);
        }
        if let Some(&made) = self.converted.get(&id) {
            return Ok(made);
        }
        let bytes = self.bytes(id).ok_or("its codes can't be read")?;
        let rows = bytes.chunks((stored as usize).max(1));
        let kept: Vec<&[u8]> = rows.filter_map(|row| row.get(..wanted)).collect();
        let dims = vec![shape.rows, wanted as u64];
        Ok(self.made_of(id, "codes", (DType::U8, dims), kept.concat()))
    }

    /// Values as f16; said where that rounds them.
    ///
    /// # Errors
    /// Values that f16 holds badly, and the weight can't be read.
    pub(super) fn halves(
        &mut self,
        id: WeightId,
        what: &str,
        rounds: Option<&Op>,
    ) -> Result<WeightId, String> {
        let weight = self.module.weight(id).ok_or("a weight is missing")?;
        if weight.dtype == DType::F16 {
            return Ok(id);
        }
        if let Some(&made) = self.converted.get(&id) {
            return Ok(made);
        }
        let dims = weight.dims.clone();
        if !weight.dtype.is_float() {
            return Err(format!("its {what} are {}", weight.dtype));
        }
        let values = self.values(id);
        let values = values.ok_or_else(|| format!("its {what} can't be read"))?;
        let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
        let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        let gaps = values.iter().zip(&halves);
        let worst = gaps.fold(0f32, |m, (x, h)| m.max((x - h.to_f32()).abs()));
        // NaN, infinities and what is too small for f16 fail this as well.
        let near = worst <= largest / 1024.0 && largest.is_finite();
        match rounds {
            _ if worst == 0.0 => {}
            Some(op) if near => {
                let site = op.name.clone();
                let why = format!("its {what} are rounded to f16, by {worst:.1e} at most");
                self.remarks.push(Remark::missed(&site, why));
            }
            _ => return Err(format!("its {what} do not fit into f16")),
        }
        let bytes = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        Ok(self.made_of(id, what, (DType::F16, dims), bytes))
    }

    /// A weight made of another one.
    fn made_of(
        &mut self,
        id: WeightId,
        what: &str,
        (dtype, dims): (DType, Vec<u64>),
        bytes: Vec<u8>,
    ) -> WeightId {
        let stem = self.module.weight(id).map_or("", |w| &w.name);
        let stem = if stem.is_empty() { what } else { stem };
        let name = self.weight_name(format!("{stem}.read"));
        let made = self.patch.add_weight(Weight {
            name,
            dtype,
            dims,
            storage: Storage::Inline(bytes),
            sha256: None,
            meta: Attrs::new(),
        });
        self.converted.insert(id, made);
        made
    }

    /// All bytes of a weight.
    pub(super) fn bytes(&self, id: WeightId) -> Option<Vec<u8>> {
        let weight = self.module.weight(id)?;
        match &weight.storage {
            Storage::Inline(bytes) => Some(bytes.clone()),
            Storage::File {
                path,
                offset,
                len,
                encoding: crate::ir::Encoding::Raw,
            } => {
                let file = MappedFile::open(&self.module.base_dir.join(&**path)).ok()?;
                Some(file.slice(*offset, *len).ok()?.to_vec())
            }
            _ => None,
        }
    }
}

fn shape(rows: i64, cols: i64, onnx: &OnnxOp) -> Result<Shape, String> {
    let (bits, block) = (int(onnx, "bits", 4), int(onnx, "block_size", 128));
    let known = u8::try_from(bits).ok().filter(|b| [2, 4, 8].contains(b));
    let bits = known.ok_or_else(|| format!("its codes have {bits} bits; 2, 4 and 8 are read"))?;
    let small = u32::try_from(block).ok();
    let small = small.filter(|b| b.is_power_of_two() && (16..=1 << 16).contains(b));
    let block = small.ok_or_else(|| format!("its blocks are of {block}"))?;
    match (u64::try_from(rows), u64::try_from(cols)) {
        (Ok(rows @ 1..=0xffff_ffff), Ok(cols @ 1..=0xffff_ffff)) => Ok(Shape {
            rows,
            cols,
            bits,
            block,
        }),
        _ => Err(format!("it is {rows} × {cols}")),
    }
}

/// What the exporter needs: the codes are written as any others.
fn spelling(dtype: DType) -> Attrs {
    let mut attrs = Attrs::new();
    attrs.set("dtype", Attr::str(dtype.name()));
    attrs
}
