//! MatMul with a Constant of `sparse_value`, and Gather from one.

use super::{Finder, SPELLING};
use crate::ir::{
    Attr, Attrs, Embedding, Layout, Linear, Matrix, Op, OpId, OpKind, Operand, Role, SparseTerm,
    Storage, Term, Weight, WeightId,
};
use crate::weights::DType;

impl Finder<'_> {
    /// The Constant of `sparse_value` that makes an operand.
    fn sparse_constant(&self, operand: Operand) -> Option<(OpId, Attrs)> {
        let Operand::Value(value) = operand else {
            return None;
        };
        let (at, _, onnx) = self.maker(value).filter(|m| m.2.op_type == "Constant")?;
        let Attr::Dict(dict) = onnx.attrs.get("sparse_value")? else {
            return None;
        };
        match dict.get("sparse")? {
            Attr::Dict(parts) => Some((at, parts.clone())),
            _ => None,
        }
    }

    /// Raises rows of a sparse table; false where the operand is none.
    pub(super) fn sparse_rows(&mut self, id: OpId, op: &Op, s: Operand, indices: Operand) -> bool {
        let Some((at, parts)) = self.sparse_constant(s) else {
            return false;
        };
        match self.sparse_term(op, &parts, false) {
            Err(why) => self.missed(op, format!("a sparse constant is left: {why}")),
            Ok((matrix, dtype)) => {
                let mut spelled = Attrs::new();
                spelled.set("dtype", Attr::str(dtype.name()));
                let mut raised = op.clone();
                raised.kind = OpKind::Embedding(Embedding { matrix });
                raised.inputs = vec![indices];
                raised.meta.set(SPELLING, Attr::Dict(spelled));
                self.replace(id, raised, &[at]);
            }
        }
        true
    }

    /// Raises `x · S`; false where the operand is no such constant.
    pub(super) fn sparse_matmul(&mut self, id: OpId, op: &Op, x: Operand, s: Operand) -> bool {
        let Some((at, parts)) = self.sparse_constant(s) else {
            return false;
        };
        match self.sparse_term(op, &parts, true) {
            Err(why) => self.missed(op, format!("a sparse constant is left: {why}")),
            Ok((matrix, dtype)) => {
                if let Err(why) = self.fits(x, -1, None, matrix.in_features) {
                    self.missed(op, why);
                    return true;
                }
                let mut spelled = Attrs::new();
                spelled.set("dtype", Attr::str(dtype.name()));
                let mut raised = op.clone();
                raised.kind = OpKind::Linear(Linear {
                    matrix,
                    bias: None,
                    layout: Layout::Rows,
                    scale: 1.0,
                    role: Role::Linear,
                });
                raised.inputs = vec![x];
                raised.meta.set(SPELLING, Attr::Dict(spelled));
                self.replace(id, raised, &[at]);
            }
        }
        true
    }

    /// The matrix in rows, turned around if it is stored as `[in, out]`.
    fn sparse_term(
        &mut self,
        op: &Op,
        parts: &Attrs,
        transposed: bool,
    ) -> Result<(Matrix, DType), String> {
        let weight = |name: &str| match parts.get(name) {
            Some(Attr::Weight(id)) => self.module.weight(*id).map(|w| (*id, w)),
            _ => None,
        };
        let dims = parts.get("dims").and_then(Attr::as_ints).unwrap_or(&[]);
        let &[mut rows, mut cols] = dims else {
            return Err(format!("it is {dims:?}, no matrix"));
        };
        if transposed {
            std::mem::swap(&mut rows, &mut cols);
        }
        let size = |n: i64| u32::try_from(n).ok().filter(|n| *n > 0).map(u64::from);
        let (Some(rows), Some(cols)) = (size(rows), size(cols)) else {
            return Err(format!("it is {dims:?}"));
        };
        let (values, stored) = weight("values").ok_or("it has no values")?;
        let (indices, index) = weight("indices").ok_or("it has no indices")?;
        let nnz = stored.elements().filter(|n| u32::try_from(*n).is_ok());
        let nnz = nnz.ok_or("it has too many values")?;
        let (dtype, pairs) = (stored.dtype, index.dims == [nnz, 2]);
        if index.dtype != DType::I64 || !pairs && index.dims != [nnz] {
            return Err(format!("its indices are {}{:?}", index.dtype, index.dims));
        }
        let halves = self.bytes_of_halves(values)?;
        let numbers = self.bytes(indices).ok_or("its indices can't be read")?;
        let numbers: Vec<u64> = numbers
            .as_chunks()
            .0
            .iter()
            .map(|n| u64::try_from(i64::from_le_bytes(*n)).unwrap_or(u64::MAX))
            .collect();
        let width = if transposed { rows } else { cols };
        let places: Vec<(u64, u64)> = match pairs {
            true => numbers
                .as_chunks()
                .0
                .iter()
                .map(|[a, b]| (*a, *b))
                .collect(),
            false => numbers.iter().map(|n| (n / width, n % width)).collect(),
        };
        let turned = |(a, b): (u64, u64)| if transposed { (b, a) } else { (a, b) };
        let places = places.into_iter().map(turned);
        let mut order: Vec<((u64, u64), [u8; 2])> = places.zip(halves).collect();
        if order
            .iter()
            .any(|((row, col), _)| *row >= rows || *col >= cols)
        {
            return Err("an index lies outside of it".to_owned());
        }
        order.sort_unstable_by_key(|entry| entry.0);
        if order
            .windows(2)
            .any(|two| matches!(two, [a, b] if a.0 == b.0))
        {
            return Err("it has two values in one place".to_owned());
        }
        let mut counts = vec![0u32; usize::try_from(rows).unwrap_or(0) + 1];
        let mut columns = Vec::new();
        for ((row, col), _) in &order {
            if let Some(count) = counts.get_mut(*row as usize + 1) {
                *count += 1;
            }
            match cols > 65536 {
                true => columns.extend((*col as u32).to_le_bytes()),
                false => columns.extend((*col as u16).to_le_bytes()),
            }
        }
        let mut sum = 0;
        let offsets = counts.iter().flat_map(|count| {
            sum += count;
            sum.to_le_bytes()
        });
        let offsets = offsets.collect();
        let index = if cols > 65536 { DType::U32 } else { DType::U16 };
        let values = order.iter().flat_map(|entry| entry.1).collect();
        let mut made =
            |what: &str, dtype, count, bytes| self.sparse_weight(op, what, dtype, count, bytes);
        let term = SparseTerm {
            values: made("sparse_values", DType::F16, nnz, values),
            columns: made("sparse_columns", index, nnz, columns),
            offsets: made("sparse_offsets", DType::U32, rows + 1, offsets),
            nnz,
        };
        let matrix = Matrix {
            out_features: rows,
            in_features: cols,
            terms: vec![Term::Sparse(term)],
        };
        Ok((matrix, dtype))
    }

    fn bytes_of_halves(&self, id: WeightId) -> Result<Vec<[u8; 2]>, String> {
        let values = self.values(id).ok_or("its values can't be read")?;
        let half = |x: f32| {
            let half = half::f16::from_f32(x);
            (half.to_f32() == x).then_some(half.to_le_bytes())
        };
        let halves: Option<Vec<_>> = values.into_iter().map(half).collect();
        halves.ok_or_else(|| "its values do not fit into f16".to_owned())
    }

    fn sparse_weight(
        &mut self,
        op: &Op,
        what: &str,
        dtype: DType,
        count: u64,
        bytes: Vec<u8>,
    ) -> WeightId {
        let name = self.weight_name(format!("{}.{what}", op.name));
        self.patch.add_weight(Weight {
            name,
            dtype,
            dims: vec![count],
            storage: Storage::Inline(bytes),
            sha256: None,
            meta: Attrs::new(),
        })
    }
}
