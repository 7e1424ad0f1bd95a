//! Terms of a linear → nodes that add their share of the product.

use super::lower::{Lowerer, Site, TRELLIS, no_form};
use super::recipe::{Form, Piece, Recipe};
use super::{ExportError, QuantForm};
use crate::ir::{
    Attr, Attrs, ColumnsTerm, Matrix, Operand, QuantTerm, SparseTerm, Term, WeightView,
};
use crate::numeric::quant::packed_len;
use crate::numeric::{Group, Scheme};
use crate::weights::DType;

/// Shape and grid of a coded matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coded {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) scheme: Scheme,
    pub(super) group: Group,
}

impl Coded {
    pub(super) fn of(matrix: &Matrix, quant: &QuantTerm) -> Self {
        Self {
            rows: matrix.out_features as usize,
            cols: matrix.in_features as usize,
            scheme: quant.scheme,
            group: quant.group,
        }
    }

    /// Width of a field that ONNX Runtime has for the codes.
    pub(super) fn field(&self) -> u8 {
        if self.scheme.bits == 3 {
            4
        } else {
            self.scheme.bits
        }
    }

    /// Block length: the group's, or for groups without one the smallest power
    /// of two that holds a row, within the bounds of the kernels.
    pub(super) fn block(&self) -> Option<usize> {
        match self.group {
            Group::Size(size) => {
                let size = size as usize;
                (size.is_power_of_two() && (16..=256).contains(&size)).then_some(size)
            }
            Group::Row | Group::Column => Some(self.cols.next_power_of_two().clamp(16, 256)),
        }
    }
}

/// A part of a term and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) term: usize,
    pub(super) piece: Piece,
}

impl Part {
    pub(super) fn recipe(self, site: &Site, form: Form) -> Recipe {
        Recipe {
            at: site.at,
            term: self.term,
            piece: self.piece,
            form,
        }
    }
}

impl Lowerer<'_> {
    /// `Σ terms · x`; zeros where there is no term.
    pub(super) fn sum_of_terms(
        &mut self,
        site: &mut Site,
        x: Operand,
        matrix: &Matrix,
    ) -> Result<Operand, ExportError> {
        let mut parts = Vec::new();
        for (term, kind) in matrix.terms.iter().enumerate() {
            let whole = Part {
                term,
                piece: Piece::Whole,
            };
            match kind {
                Term::Dense(view) => parts.push(self.dense(site, x, matrix, view)),
                Term::Trellis(_) => return Err(no_form(site, TRELLIS)),
                Term::Quant(q) => {
                    parts.push(self.rotated(site, x, Coded::of(matrix, q), q, whole)?);
                }
                Term::LowRank(l) => parts.extend(self.low_rank(site, x, matrix, term, l)?),
                Term::Sparse(s) if s.nnz > 0 => parts.push(self.sparse(site, x, matrix, s, whole)),
                Term::Columns(c) if c.count > 0 => {
                    parts.push(self.columns(site, x, matrix, c, whole));
                }
                Term::Sparse(_) | Term::Columns(_) => {}
                Term::Custom(_) => {
                    let table = self.custom(site, matrix, kind, whole, true)?;
                    parts.push(self.standard(site, "MatMul", vec![x, table], Vec::new()));
                }
            }
        }
        match self.sum(site, &parts) {
            Some(sum) => Ok(sum),
            None => self.zeros(site, x, matrix),
        }
    }

    /// The zero matrix: a linear whose terms were all dropped.
    fn zeros(
        &mut self,
        site: &mut Site,
        x: Operand,
        matrix: &Matrix,
    ) -> Result<Operand, ExportError> {
        let (rows, cols) = (matrix.out_features as usize, matrix.in_features as usize);
        let zeros = |n| super::recipe::encode(std::iter::repeat_n(0.0, n), site.dtype);
        let (Some(down), Some(up)) = (zeros(cols), zeros(rows)) else {
            return Err(no_form(site, "a zero matrix of this element type"));
        };
        let down = self.inline(site, "zero_in", site.dtype, &[cols, 1], down);
        let up = self.inline(site, "zero_out", site.dtype, &[1, rows], up);
        let inner = self.standard(site, "MatMul", vec![x, down], Vec::new());
        Ok(self.standard(site, "MatMul", vec![inner, up], Vec::new()))
    }

    /// A dense weight as `[in, out]`, of the activations' type.
    pub(super) fn dense_operand(
        &mut self,
        site: &mut Site,
        matrix: &Matrix,
        view: &WeightView,
        transposed: bool,
    ) -> Operand {
        let mut weight = Operand::Weight(view.weight);
        let stored = self.source.weight(view.weight);
        let dtype = stored.map_or(site.dtype, |weight| weight.dtype);
        if let Some(index) = view.index {
            let index = self.inline(site, "index", DType::I64, &[], index.to_le_bytes().to_vec());
            weight = self.standard(site, "Gather", vec![weight, index], Vec::new());
        } else if stored.is_some_and(|weight| weight.dims.len() > 2) {
            let (rows, cols) = (matrix.out_features as i64, matrix.in_features as i64);
            let dims = if view.transposed {
                [cols, rows]
            } else {
                [rows, cols]
            };
            let shape = self.ints(site, "shape", &dims);
            weight = self.standard(site, "Reshape", vec![weight, shape], Vec::new());
        }
        if view.transposed != transposed {
            let perm = vec![("perm", Attr::Ints(vec![1, 0]))];
            weight = self.standard(site, "Transpose", vec![weight], perm);
        }
        self.cast(site, weight, dtype)
    }

    fn dense(
        &mut self,
        site: &mut Site,
        x: Operand,
        matrix: &Matrix,
        view: &WeightView,
    ) -> Operand {
        let weight = self.dense_operand(site, matrix, view, true);
        self.standard(site, "MatMul", vec![x, weight], Vec::new())
    }

    /// A coded matrix times `x`, in the chosen form.
    pub(super) fn coded(
        &mut self,
        site: &mut Site,
        x: Operand,
        coded: Coded,
        part: Part,
        suffix: &str,
    ) -> Result<Operand, ExportError> {
        if coded.scheme.bits == 3 {
            self.notes
                .push("3-bit codes are stored in 4-bit fields, without loss".to_owned());
        }
        match self.options.quant {
            QuantForm::NBits => self.nbits(site, x, coded, part, suffix),
            QuantForm::Qdq => {
                let weight = self.dequantized(site, coded, part, suffix, true);
                Ok(self.standard(site, "MatMul", vec![x, weight], Vec::new()))
            }
        }
    }

    fn nbits(
        &mut self,
        site: &mut Site,
        x: Operand,
        coded: Coded,
        part: Part,
        suffix: &str,
    ) -> Result<Operand, ExportError> {
        let (block, x) = self.blocked(site, x, coded, part, suffix)?;
        let (bits, count) = (coded.field(), coded.cols.div_ceil(block));
        let dims = [coded.rows, count, packed_len(bits, block)];
        let recipe = part.recipe(site, Form::Blocks { bits, block });
        let codes = self.made(site, suffix, DType::U8, &dims, recipe);
        let mut inputs = vec![x, Operand::Weight(codes)];
        inputs.extend(self.block_scales(site, coded, part, suffix, block));
        let attrs = vec![
            ("K", Attr::Int(coded.cols as i64)),
            ("N", Attr::Int(coded.rows as i64)),
            ("bits", Attr::Int(i64::from(bits))),
            ("block_size", Attr::Int(block as i64)),
        ];
        Ok(self.node(site, ("com.microsoft", "MatMulNBits"), inputs, attrs))
    }

    /// Block length of the runtime's own operators, and the activations: for
    /// column groups these take the scales, since a block has one per row.
    fn blocked(
        &mut self,
        site: &mut Site,
        x: Operand,
        coded: Coded,
        part: Part,
        suffix: &str,
    ) -> Result<(usize, Operand), ExportError> {
        let supported = matches!(site.dtype, DType::F32 | DType::F16 | DType::BF16);
        if !supported {
            let what = format!("{} activations have no MatMulNBits", site.dtype);
            return Err(no_form(site, &what));
        }
        let block = coded.block().ok_or_else(|| {
            no_form(
                site,
                &format!(
                    "MatMulNBits has no group of {}; 16, 32, 64, 128 and 256 work",
                    coded.group
                ),
            )
        })?;
        match coded.group {
            Group::Size(_) => Ok((block, x)),
            Group::Row => {
                self.notes
                    .push(format!("row scales are repeated for every {block} inputs"));
                Ok((block, x))
            }
            Group::Column if !coded.scheme.symmetric => Err(no_form(
                site,
                "MatMulNBits has no zero point per column; use --onnx-quant=qdq or symmetric columns",
            )),
            Group::Column => {
                let form = Form::ColumnScales { dtype: site.dtype };
                let name = format!("{suffix}_column_scales");
                let scales = self.made(
                    site,
                    &name,
                    site.dtype,
                    &[coded.cols],
                    part.recipe(site, form),
                );
                let x = self.standard(site, "Mul", vec![x, Operand::Weight(scales)], Vec::new());
                Ok((block, x))
            }
        }
    }

    /// Scales and, for asymmetric schemes, zero points by blocks.
    pub(super) fn block_scales(
        &mut self,
        site: &Site,
        coded: Coded,
        part: Part,
        suffix: &str,
        block: usize,
    ) -> Vec<Operand> {
        let count = coded.cols.div_ceil(block);
        let form = Form::BlockScales {
            dtype: site.dtype,
            block,
        };
        let name = format!("{suffix}_scales");
        let scales = self.made(
            site,
            &name,
            site.dtype,
            &[coded.rows, count],
            part.recipe(site, form),
        );
        let mut inputs = vec![Operand::Weight(scales)];
        if !coded.scheme.symmetric {
            let bits = coded.field();
            let recipe = part.recipe(site, Form::BlockZeros { bits, block });
            let dims = [coded.rows, packed_len(bits, count)];
            let zeros = self.made(site, &format!("{suffix}_zeros"), DType::U8, &dims, recipe);
            inputs.push(Operand::Weight(zeros));
        }
        inputs
    }

    /// A coded matrix behind DequantizeLinear, `[in, out]` if transposed.
    pub(super) fn dequantized(
        &mut self,
        site: &mut Site,
        coded: Coded,
        part: Part,
        suffix: &str,
        transposed: bool,
    ) -> Operand {
        let bits = if coded.scheme.bits == 8 { 8 } else { 4 };
        let dtype = match (bits, coded.scheme.symmetric) {
            (8, true) => DType::I8,
            (8, false) => DType::U8,
            (_, true) => DType::I4,
            (_, false) => DType::U4,
        };
        let (rows, cols) = (coded.rows, coded.cols);
        let flip = |a: usize, b: usize| if transposed { [b, a] } else { [a, b] };
        let (scale_dims, axis, block) = match coded.group {
            Group::Size(size) => {
                let groups = cols.div_ceil((size as usize).max(1));
                (
                    flip(rows, groups).to_vec(),
                    usize::from(!transposed),
                    i64::from(size),
                )
            }
            Group::Row => (vec![rows], usize::from(transposed), 0),
            Group::Column => (vec![cols], usize::from(!transposed), 0),
        };
        // Blocks, 4-bit types and f16 scales came with opset 21, 21 and 19.
        let plain = bits == 8 && block == 0;
        let needs = if !plain {
            21
        } else if site.dtype == DType::F32 {
            13
        } else {
            19
        };
        self.opset = self.opset.max(needs);
        let recipe = part.recipe(site, Form::Grid { bits, transposed });
        let codes = self.made(site, suffix, dtype, &flip(rows, cols), recipe);
        let recipe = part.recipe(
            site,
            Form::GridScales {
                dtype: site.dtype,
                transposed,
            },
        );
        let scales = self.made(
            site,
            &format!("{suffix}_scales"),
            site.dtype,
            &scale_dims,
            recipe,
        );
        let mut inputs = vec![Operand::Weight(codes), Operand::Weight(scales)];
        if !coded.scheme.symmetric {
            let recipe = part.recipe(site, Form::GridZeros { bits, transposed });
            let zeros = self.made(site, &format!("{suffix}_zeros"), dtype, &scale_dims, recipe);
            inputs.push(Operand::Weight(zeros));
        }
        let mut attrs = vec![("axis", Attr::Int(axis as i64))];
        if block > 0 {
            attrs.push(("block_size", Attr::Int(block)));
        }
        self.standard(site, "DequantizeLinear", inputs, attrs)
    }

    /// A Constant with the sparse term, dense to everything that reads it.
    pub(super) fn sparse_constant(
        &mut self,
        site: &mut Site,
        matrix: &Matrix,
        term: &SparseTerm,
        part: Part,
        transposed: bool,
    ) -> Operand {
        self.opset = self.opset.max(11);
        let (dtype, count) = (site.dtype, term.nnz as usize);
        let form = Form::SparseValues { dtype, transposed };
        let values = self.made(
            site,
            "sparse_values",
            dtype,
            &[count],
            part.recipe(site, form),
        );
        let form = Form::SparseIndices { transposed };
        let indices = self.made(
            site,
            "sparse_indices",
            DType::I64,
            &[count],
            part.recipe(site, form),
        );
        let (rows, cols) = (matrix.out_features as i64, matrix.in_features as i64);
        let dims = if transposed {
            vec![cols, rows]
        } else {
            vec![rows, cols]
        };
        let mut parts = Attrs::new();
        parts.set("values", Attr::Weight(values));
        parts.set("indices", Attr::Weight(indices));
        parts.set("dims", Attr::Ints(dims));
        let mut sparse = Attrs::new();
        sparse.set("sparse", Attr::Dict(parts));
        let bytes = dtype.bytes_for(matrix.entries()).unwrap_or(0);
        self.notes.push(format!(
            "{}: ONNX Runtime makes the sparse term dense when it loads the model ({:.1} MiB)",
            site.name,
            bytes as f64 / (1 << 20) as f64,
        ));
        self.standard(
            site,
            "Constant",
            Vec::new(),
            vec![("sparse_value", Attr::Dict(sparse))],
        )
    }

    fn sparse(
        &mut self,
        site: &mut Site,
        x: Operand,
        matrix: &Matrix,
        term: &SparseTerm,
        part: Part,
    ) -> Operand {
        let weight = self.sparse_constant(site, matrix, term, part, true);
        self.standard(site, "MatMul", vec![x, weight], Vec::new())
    }

    fn columns(
        &mut self,
        site: &mut Site,
        x: Operand,
        matrix: &Matrix,
        term: &ColumnsTerm,
        part: Part,
    ) -> Operand {
        // Negative axes came with opset 11.
        self.opset = self.opset.max(11);
        let (rows, count) = (matrix.out_features as usize, term.count as usize);
        let indices = self.made(
            site,
            "columns",
            DType::I64,
            &[count],
            part.recipe(site, Form::ColumnIndices),
        );
        let form = Form::Floats {
            dtype: DType::F16,
            transposed: true,
        };
        let values = self.made(
            site,
            "column_values",
            DType::F16,
            &[count, rows],
            part.recipe(site, form),
        );
        let axis = vec![("axis", Attr::Int(-1))];
        let taken = self.standard(site, "Gather", vec![x, Operand::Weight(indices)], axis);
        let values = self.cast(site, Operand::Weight(values), DType::F16);
        self.standard(site, "MatMul", vec![taken, values], Vec::new())
    }
}
