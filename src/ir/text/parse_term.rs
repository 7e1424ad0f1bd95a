//! Text to terms.

use super::cursor::Cursor;
use super::parse::{Parser, Result};
use super::parse_op::json_dict;
use crate::ir::{
    ColumnsTerm, CustomTerm, FactorRef, LowRankTerm, Matrix, QuantTerm, Rotation, SparseTerm, Term,
    TrellisTerm, WeightView, is_custom_kind,
};
use crate::numeric::{Block, FactorFormat, Group, Scheme};

impl Parser {
    /// `[out,in] { term + term }`
    pub(super) fn matrix(&mut self, c: &mut Cursor<'_>) -> Result<Matrix> {
        c.expect("[")?;
        let out_features = c.integer()?;
        c.expect(",")?;
        let in_features = c.integer()?;
        c.expect("]")?;
        c.expect("{")?;
        let mut matrix = Matrix {
            out_features,
            in_features,
            terms: Vec::new(),
        };
        if c.eat("}") {
            return Ok(matrix);
        }
        loop {
            let term = self.term(c, &matrix)?;
            matrix.terms.push(term);
            if c.eat("}") {
                return Ok(matrix);
            }
            c.expect("+")?;
        }
    }

    fn term(&mut self, c: &mut Cursor<'_>, matrix: &Matrix) -> Result<Term> {
        let at = c.position();
        let word = c.word().to_string();
        c.expect("(")?;
        let term = match word.as_str() {
            "dense" => self.dense(c)?,
            "quant" => self.quant(c)?,
            "trellis" => self.trellis(c)?,
            "low_rank" => self.low_rank(c, matrix)?,
            "sparse" => {
                let values = self.weight_then_comma(c)?;
                let columns = self.weight_then_comma(c)?;
                let offsets = self.weight_then_comma(c)?;
                c.expect("nnz")?;
                c.expect("=")?;
                let nnz = c.integer()?;
                Term::Sparse(SparseTerm {
                    values,
                    columns,
                    offsets,
                    nnz,
                })
            }
            "columns" => {
                let columns = self.weight_then_comma(c)?;
                let values = self.weight_then_comma(c)?;
                c.expect("count")?;
                c.expect("=")?;
                let count = c.integer()?;
                Term::Columns(ColumnsTerm {
                    columns,
                    values,
                    count,
                })
            }
            kind if is_custom_kind(kind) => self.custom(c, kind)?,
            _ => return Err(c.error_at(at, format!("`{word}` is no kind of term"))),
        };
        c.expect(")")?;
        Ok(term)
    }

    /// `codes=@c, values=@v, {entries=16}`
    fn custom(&mut self, c: &mut Cursor<'_>, kind: &str) -> Result<Term> {
        let mut term = CustomTerm {
            kind: kind.to_string(),
            tensors: Vec::new(),
            attrs: serde_json::Map::new(),
        };
        loop {
            if c.peek() == Some(b'{') {
                term.attrs = json_dict(c, 0)?;
                return Ok(Term::Custom(term));
            }
            if c.peek() == Some(b')') {
                return Ok(Term::Custom(term));
            }
            let name = c.name()?;
            c.expect("=")?;
            let id = self.weight_ref(c)?;
            term.tensors.push((name, id));
            if !c.eat(",") {
                return Ok(Term::Custom(term));
            }
        }
    }

    fn weight_then_comma(&mut self, c: &mut Cursor<'_>) -> Result<crate::ir::WeightId> {
        let id = self.weight_ref(c)?;
        c.expect(",")?;
        Ok(id)
    }

    fn dense(&mut self, c: &mut Cursor<'_>) -> Result<Term> {
        let mut view = WeightView::whole(self.weight_ref(c)?);
        while c.eat(",") {
            if c.eat("transposed") {
                view.transposed = true;
            } else {
                c.expect("index")?;
                c.expect("=")?;
                view.index = Some(c.integer()?);
            }
        }
        Ok(Term::Dense(view))
    }

    fn quant(&mut self, c: &mut Cursor<'_>) -> Result<Term> {
        let codes = self.weight_then_comma(c)?;
        let scales = self.weight_then_comma(c)?;
        let zeros = match c.peek() {
            Some(b'@') => Some(self.weight_then_comma(c)?),
            _ => None,
        };
        let at = c.position();
        let bits = match c.word() {
            "int2" => 2,
            "int3" => 3,
            "int4" => 4,
            "int8" => 8,
            other => return Err(c.error_at(at, format!("`{other}` is no integer scheme"))),
        };
        c.expect(",")?;
        c.expect("group")?;
        c.expect("=")?;
        let at = c.position();
        let word = c.word();
        let group: Group = word
            .parse()
            .map_err(|_| c.error_at(at, format!("`{word}` is no group size")))?;
        Ok(Term::Quant(QuantTerm {
            codes,
            scales,
            zeros,
            scheme: Scheme {
                bits,
                symmetric: zeros.is_none(),
            },
            group,
            rotation: rotation(c)?,
        }))
    }

    fn trellis(&mut self, c: &mut Cursor<'_>) -> Result<Term> {
        let codes = self.weight_then_comma(c)?;
        let scales = self.weight_then_comma(c)?;
        let bits = self.weight_then_comma(c)?;
        c.expect("states")?;
        c.expect("=")?;
        Ok(Term::Trellis(TrellisTerm {
            codes,
            scales,
            bits,
            states: c.integer()?,
            rotation: rotation(c)?,
        }))
    }

    fn low_rank(&mut self, c: &mut Cursor<'_>, matrix: &Matrix) -> Result<Term> {
        let u = self.factor(c)?;
        c.expect(",")?;
        let v = self.factor(c)?;
        c.expect(",")?;
        let mut blocks = Vec::new();
        if c.eat("r") {
            c.expect("=")?;
            let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            blocks.push(Block {
                row0: 0,
                rows: size(matrix.out_features),
                col0: 0,
                cols: size(matrix.in_features),
                rank: c.integer()?,
            });
        } else {
            c.expect("blocks")?;
            c.expect("=")?;
            c.list("[", "]", |c| {
                blocks.push(block(c)?);
                Ok(())
            })?;
        }
        Ok(Term::LowRank(LowRankTerm { blocks, u, v }))
    }

    fn factor(&mut self, c: &mut Cursor<'_>) -> Result<FactorRef> {
        let at = c.position();
        let format = match c.word() {
            "f32" => FactorFormat::F32,
            "f16" => FactorFormat::F16,
            "int8" => FactorFormat::Int8,
            "int4" => FactorFormat::Int4,
            other => return Err(c.error_at(at, format!("`{other}` is no factor format"))),
        };
        c.expect("(")?;
        let data = self.weight_ref(c)?;
        let scales = match c.eat(",") {
            true => Some(self.weight_ref(c)?),
            false => None,
        };
        c.expect(")")?;
        Ok(FactorRef {
            format,
            data,
            scales,
        })
    }
}

/// `, rotate(out=64, in=64, seed=7)`, or nothing
fn rotation(c: &mut Cursor<'_>) -> Result<Option<Rotation>> {
    if !c.eat(",") {
        return Ok(None);
    }
    c.expect("rotate")?;
    c.expect("(")?;
    let mut named = |name: &str, end: &str| -> Result<u64> {
        c.expect(name)?;
        c.expect("=")?;
        let value = c.integer()?;
        c.expect(end)?;
        Ok(value)
    };
    Ok(Some(Rotation {
        out_block: named("out", ",")?,
        in_block: named("in", ",")?,
        seed: named("seed", ")")?,
    }))
}

/// `(row0+rows, col0+cols, r=rank)`
fn block(c: &mut Cursor<'_>) -> Result<Block> {
    c.expect("(")?;
    let row0 = c.integer()?;
    c.expect("+")?;
    let rows = c.integer()?;
    c.expect(",")?;
    let col0 = c.integer()?;
    c.expect("+")?;
    let cols = c.integer()?;
    c.expect(",")?;
    c.expect("r")?;
    c.expect("=")?;
    let rank = c.integer()?;
    c.expect(")")?;
    Ok(Block {
        row0,
        rows,
        col0,
        cols,
        rank,
    })
}
