//! Terms of an embedding → nodes that look up their share of each row.

use super::lower::{Lowerer, ROTATED, Site, TRELLIS, no_form};
use super::recipe::{Form, Piece};
use super::terms::{Coded, Part};
use super::{ExportError, QuantForm};
use crate::ir::{Attr, ColumnsTerm, Embedding, LowRankTerm, Matrix, Op, Operand, Term};
use crate::numeric::quant::packed_len;
use crate::numeric::{Group, Side};
use crate::weights::DType;

impl Lowerer<'_> {
    /// The rows of `Σ terms` that the op's input names.
    pub(super) fn embedding(
        &mut self,
        site: &mut Site,
        op: &Op,
        embedding: &Embedding,
    ) -> Result<Operand, ExportError> {
        let matrix = &embedding.matrix;
        let indices = op.inputs.first().copied().unwrap_or(Operand::None);
        let mut parts = Vec::new();
        for (term, kind) in matrix.terms.iter().enumerate() {
            let part = Part {
                term,
                piece: Piece::Whole,
            };
            match kind {
                Term::Dense(view) => {
                    let stored = self.source.weight(view.weight).map(|weight| weight.dtype);
                    let plain = !view.transposed && view.index.is_none();
                    let (Some(dtype), true) = (stored, plain) else {
                        let table = self.dense_operand(site, matrix, view, false);
                        parts.push(self.gather(site, table, indices));
                        continue;
                    };
                    // The rows, not the table, are made wider.
                    let rows = self.gather(site, Operand::Weight(view.weight), indices);
                    parts.push(self.cast(site, rows, dtype));
                }
                Term::Trellis(_) => return Err(no_form(site, TRELLIS)),
                Term::Quant(q) if q.rotation.is_some_and(|r| r.out_block > 1) => {
                    return Err(no_form(site, ROTATED));
                }
                Term::Quant(q) => {
                    let rows = self.coded_rows(site, indices, Coded::of(matrix, q), part, "q")?;
                    let side = q
                        .rotation
                        .map(|r| (r.in_side(), matrix.in_features as usize));
                    parts.push(match side {
                        Some(side) => self.turn(site, rows, side, true)?,
                        None => rows,
                    });
                }
                Term::LowRank(l) => {
                    parts.extend(self.low_rank_rows(site, indices, matrix, term, l)?)
                }
                Term::Sparse(s) if s.nnz > 0 => {
                    let table = self.sparse_constant(site, matrix, s, part, false);
                    parts.push(self.gather(site, table, indices));
                }
                Term::Columns(c) if c.count > 0 => {
                    parts.push(self.column_rows(site, indices, matrix, c, part));
                }
                Term::Sparse(_) | Term::Columns(_) => {}
                Term::Custom(_) => {
                    let table = self.custom(site, matrix, kind, part, false)?;
                    parts.push(self.gather(site, table, indices));
                }
            }
        }
        let sum = self.sum(site, &parts);
        sum.ok_or_else(|| no_form(site, "an embedding without terms has no ONNX form"))
    }

    fn gather(&mut self, site: &mut Site, table: Operand, indices: Operand) -> Operand {
        self.standard(
            site,
            "Gather",
            vec![table, indices],
            vec![("axis", Attr::Int(0))],
        )
    }

    fn coded_rows(
        &mut self,
        site: &mut Site,
        indices: Operand,
        coded: Coded,
        part: Part,
        suffix: &str,
    ) -> Result<Operand, ExportError> {
        if self.options.quant == QuantForm::Qdq {
            let table = self.dequantized(site, coded, part, suffix, false);
            return Ok(self.gather(site, table, indices));
        }
        if coded.group == Group::Column && !coded.scheme.symmetric {
            let what = "GatherBlockQuantized has no zero point per column; use --onnx-quant=qdq";
            return Err(no_form(site, what));
        }
        let block = coded
            .block()
            .ok_or_else(|| no_form(site, "a group that is no power of two"))?;
        let bits = coded.field();
        let recipe = part.recipe(site, Form::Rows { bits });
        let dims = [coded.rows, packed_len(bits, coded.cols)];
        let codes = self.made(site, suffix, DType::U8, &dims, recipe);
        let mut inputs = vec![Operand::Weight(codes), indices];
        inputs.extend(self.block_scales(site, coded, part, suffix, block));
        let attrs = vec![
            ("bits", Attr::Int(i64::from(bits))),
            ("block_size", Attr::Int(block as i64)),
            ("gather_axis", Attr::Int(0)),
            ("quantize_axis", Attr::Int(1)),
        ];
        let mut rows = self.node(
            site,
            ("com.microsoft", "GatherBlockQuantized"),
            inputs,
            attrs,
        );
        if coded.group == Group::Column {
            let form = Form::ColumnScales { dtype: site.dtype };
            let name = format!("{suffix}_column_scales");
            let scales = self.made(
                site,
                &name,
                site.dtype,
                &[coded.cols],
                part.recipe(site, form),
            );
            rows = self.standard(site, "Mul", vec![rows, Operand::Weight(scales)], Vec::new());
        }
        Ok(rows)
    }

    /// Rows of U times V; a hierarchy as one flattened pair.
    fn low_rank_rows(
        &mut self,
        site: &mut Site,
        indices: Operand,
        matrix: &Matrix,
        term: usize,
        low_rank: &LowRankTerm,
    ) -> Result<Option<Operand>, ExportError> {
        let rank: usize = low_rank.blocks.iter().map(|block| block.rank).sum();
        if rank == 0 {
            return Ok(None);
        }
        let (rows, cols) = (matrix.out_features as usize, matrix.in_features as usize);
        let coded = |side| Some((low_rank.u.format.scheme()?, low_rank.u.format.group(side)?));
        let one = low_rank.blocks.len() == 1;
        if let (true, Some((scheme, group)), Some((_, v_group))) =
            (one, coded(Side::U), coded(Side::V))
        {
            let u = Part {
                term,
                piece: Piece::U {
                    block: 0,
                    before: 0,
                    after: 0,
                },
            };
            let shape = Coded {
                rows,
                cols: rank,
                scheme,
                group,
            };
            let taken = self.coded_rows(site, indices, shape, u, "u")?;
            // V is used as [rank, width], which codes by rows of V can't be.
            let v = Part {
                term,
                piece: Piece::V { block: 0 },
            };
            let shape = Coded {
                rows: rank,
                cols,
                scheme,
                group: v_group,
            };
            let v = self.v_table(site, shape, v)?;
            return Ok(Some(self.standard(
                site,
                "MatMul",
                vec![taken, v],
                Vec::new(),
            )));
        }
        let dtype = super::factors::plain_dtype(low_rank.u.format);
        let form = Form::Floats {
            dtype,
            transposed: false,
        };
        let u = Part {
            term,
            piece: Piece::FlatU,
        }
        .recipe(site, form);
        let u = self.made(site, "u", dtype, &[rows, rank], u);
        let v = Part {
            term,
            piece: Piece::FlatV,
        }
        .recipe(site, form);
        let v = self.made(site, "v", dtype, &[rank, cols], v);
        let taken = self.gather(site, Operand::Weight(u), indices);
        let taken = self.cast(site, taken, dtype);
        let v = self.cast(site, Operand::Weight(v), dtype);
        Ok(Some(self.standard(
            site,
            "MatMul",
            vec![taken, v],
            Vec::new(),
        )))
    }

    /// The coded right factor as a float matrix `[rank, width]`.
    fn v_table(
        &mut self,
        site: &mut Site,
        coded: Coded,
        part: Part,
    ) -> Result<Operand, ExportError> {
        if self.options.quant == QuantForm::Qdq {
            return Ok(self.dequantized(site, coded, part, "v", false));
        }
        let all: Vec<i64> = (0..coded.rows as i64).collect();
        let all = self.ints(site, "ranks", &all);
        self.coded_rows(site, all, coded, part, "v")
    }

    fn column_rows(
        &mut self,
        site: &mut Site,
        indices: Operand,
        matrix: &Matrix,
        term: &ColumnsTerm,
        part: Part,
    ) -> Operand {
        let (rows, cols) = (matrix.out_features as usize, matrix.in_features as usize);
        let count = term.count as usize;
        let form = Form::Floats {
            dtype: DType::F16,
            transposed: false,
        };
        let values = self.made(
            site,
            "column_values",
            DType::F16,
            &[rows, count],
            part.recipe(site, form),
        );
        let form = Form::OneHot { dtype: DType::F16 };
        let places = self.made(
            site,
            "columns",
            DType::F16,
            &[count, cols],
            part.recipe(site, form),
        );
        let taken = self.gather(site, Operand::Weight(values), indices);
        let taken = self.cast(site, taken, DType::F16);
        let places = self.cast(site, Operand::Weight(places), DType::F16);
        self.standard(site, "MatMul", vec![taken, places], Vec::new())
    }
}
