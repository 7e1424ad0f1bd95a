//! Terms located in their files, their sizes checked.

use super::*;

impl Preparer<'_> {
    pub(super) fn stored(&self, id: WeightId) -> Result<Stored, ExecError> {
        let absent = || StoreError::Absent(id.to_string());
        let weight = self.module.weight(id).ok_or_else(absent)?;
        Ok(Stored {
            located: self.reader.locate(self.module, weight)?,
            weight: weight.name.clone(),
        })
    }

    pub(super) fn term(&self, term: &Term) -> Result<PreparedTerm, ExecError> {
        Ok(match term {
            Term::Dense(view) => self.dense(view)?,
            Term::Quant(q) => self.quant(q)?,
            Term::Trellis(t) => self.trellis(t)?,
            Term::LowRank(l) => self.low_rank(l)?,
            Term::Sparse(s) => self.sparse(s)?,
            Term::Custom(c) => PreparedTerm::Custom(self.custom(c)?),
            Term::Columns(c) => {
                let indices = self.stored(c.columns)?;
                let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap_or_default());
                let columns: Vec<u32> = indices.bytes()?.chunks_exact(4).map(word).collect();
                if columns.iter().any(|&c| c as usize >= self.cols) {
                    let problem = format!("a column beyond the last, {}", self.cols);
                    return Err(damaged(&indices.weight, problem));
                }
                let values = self.stored(c.values)?;
                let values = values.expect(self.rows * columns.len() * 2)?;
                PreparedTerm::Columns { columns, values }
            }
        })
    }

    fn dense(&self, view: &WeightView) -> Result<PreparedTerm, ExecError> {
        let mut data = self.stored(view.weight)?;
        let dtype = self
            .module
            .weight(view.weight)
            .map_or(DType::F32, |w| w.dtype);
        let Some(format) = dtype.as_float() else {
            let problem = format!("a matrix of {} cannot be multiplied", dtype.name());
            return Err(damaged(&data.weight, problem));
        };
        let entries = (self.rows * self.cols) as u64;
        let bytes = dtype.bytes_for(entries).unwrap_or(u64::MAX);
        let skip = bytes.checked_mul(view.index.unwrap_or(0));
        let fits = skip.is_some_and(|s| s.saturating_add(bytes) <= data.located.len);
        if !fits {
            let problem = format!("{} bytes do not hold the matrix", data.located.len);
            return Err(damaged(&data.weight, problem));
        }
        data.located.offset += skip.unwrap_or(0);
        data.located.len = bytes;
        Ok(PreparedTerm::Dense {
            data,
            format,
            transposed: view.transposed,
            kept: super::Kept::default(),
        })
    }

    fn quant(&self, q: &QuantTerm) -> Result<PreparedTerm, ExecError> {
        let zeros = match q.zeros {
            Some(id) => Some(self.stored(id)?),
            None => None,
        };
        let (codes, scales) = (self.stored(q.codes)?, self.stored(q.scales)?);
        let parts = (codes.bytes()?, scales.bytes()?);
        let given = zeros.as_ref().map(Stored::bytes).transpose()?;
        let shape = (self.rows, self.cols);
        QuantRows::new(shape, q.scheme, q.group, parts.0, parts.1, given)
            .map_err(|e| damaged(&codes.weight, e.to_string()))?;
        Ok(PreparedTerm::Quant {
            codes,
            scales,
            zeros,
            scheme: q.scheme,
            group: q.group,
            rotation: q.rotation.map(Sides::of),
        })
    }

    fn trellis(&self, t: &TrellisTerm) -> Result<PreparedTerm, ExecError> {
        let (codes, scales) = (self.stored(t.codes)?, self.stored(t.scales)?);
        let bits = self.stored(t.bits)?;
        let of_blocks = bits.bytes()?.to_vec();
        let shape = (self.rows, self.cols);
        TrellisRows::new(shape, t.states, &of_blocks, codes.bytes()?, scales.bytes()?)
            .map_err(|e| damaged(&codes.weight, e.to_string()))?;
        Ok(PreparedTerm::Trellis {
            codes,
            scales,
            bits: of_blocks,
            states_log2: t.states,
            rotation: t.rotation.map(Sides::of),
        })
    }

    fn sparse(&self, s: &SparseTerm) -> Result<PreparedTerm, ExecError> {
        let nnz = usize::try_from(s.nnz)
            .map_err(|_| StoreError::TooLarge("of a sparse term".to_string()))?;
        let index = if self.cols > 65536 { 4 } else { 2 };
        let values = self.stored(s.values)?.expect(nnz * 2)?;
        let columns = self.stored(s.columns)?.expect(nnz * index)?;
        let offsets = self.stored(s.offsets)?.expect((self.rows + 1) * 4)?;
        let view = CsrView {
            rows: self.rows,
            cols: self.cols,
            values: values.bytes()?,
            columns: columns.bytes()?,
            offsets: offsets.bytes()?,
        };
        if let Err(problem) = view.check() {
            return Err(damaged(&offsets.weight, problem.to_string()));
        }
        Ok(PreparedTerm::Csr {
            values,
            columns,
            offsets,
        })
    }

    fn low_rank(&self, l: &LowRankTerm) -> Result<PreparedTerm, ExecError> {
        let (u, v) = (self.factor(&l.u)?, self.factor(&l.v)?);
        let view = LowRankView {
            rows: self.rows,
            cols: self.cols,
            blocks: &l.blocks,
            u: u.view()?,
            v: v.view()?,
        };
        view.check()
            .map_err(|e| damaged(&u.data.weight, e.to_string()))?;
        Ok(PreparedTerm::LowRank {
            blocks: l.blocks.clone(),
            u,
            v,
        })
    }

    fn factor(&self, f: &FactorRef) -> Result<Factor, ExecError> {
        let scales = match f.scales {
            Some(id) => Some(self.stored(id)?),
            None => None,
        };
        Ok(Factor {
            format: f.format,
            data: self.stored(f.data)?,
            scales,
        })
    }
}
