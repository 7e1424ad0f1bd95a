//! Stored matrices read as rows of f32, tile by tile.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{DType, MappedFile, Result, WeightsError};

mod decode;

pub use decode::{decode_f32, encode_f32};

/// Rows of a block that is transposed at once: long runs of stored elements.
const BLOCK_ROWS: usize = 128;

/// Columns of such a block: a cache line of the output.
const BLOCK_COLS: usize = 16;

/// Where the bytes of a tensor are.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a mapped file.
    Mapped(Arc<MappedFile>),
    /// In memory: small tensors that no file holds in usable form.
    Memory(Bytes),
}

impl Source {
    /// Bytes `offset..offset + len`.
    ///
    /// # Errors
    /// [`WeightsError::OutOfBounds`].
    pub fn slice(&self, offset: u64, len: u64) -> Result<&[u8]> {
        match self {
            Source::Mapped(file) => file.slice(offset, len),
            Source::Memory(_) => self.mapped(offset, len),
        }
    }

    /// [`Self::slice`] without a look at the file; see [`MappedFile::mapped`].
    ///
    /// # Errors
    /// [`WeightsError::OutOfBounds`].
    pub fn mapped(&self, offset: u64, len: u64) -> Result<&[u8]> {
        match self {
            Source::Mapped(file) => file.mapped(offset, len),
            Source::Memory(bytes) => {
                let end = usize::try_from(offset.saturating_add(len)).ok();
                let start = usize::try_from(offset).ok();
                let range = start
                    .zip(end)
                    .and_then(|(start, end)| bytes.get(start..end));
                range.ok_or_else(|| WeightsError::OutOfBounds {
                    path: self.path().to_path_buf(),
                    offset,
                    len,
                    size: bytes.len() as u64,
                })
            }
        }
    }

    /// Gives back the pages of a range; see [`MappedFile::release`].
    pub fn release(&self, offset: u64, len: u64) {
        if let Source::Mapped(file) = self {
            file.release(offset, len);
        }
    }

    /// The file's path, or `<memory>`.
    pub fn path(&self) -> &Path {
        match self {
            Source::Mapped(file) => file.path(),
            Source::Memory(_) => Path::new("<memory>"),
        }
    }
}

impl From<Arc<MappedFile>> for Source {
    fn from(file: Arc<MappedFile>) -> Source {
        Source::Mapped(file)
    }
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Source {
        Source::Memory(bytes)
    }
}

/// A matrix `[rows, cols]` (`[out, in]` of a linear) over stored elements.
///
/// The stored matrix may be the transpose, and the view a part of it: rows of
/// a fused projection, or one expert of a stack. Views are cheap to clone.
#[derive(Debug, Clone)]
pub struct MatrixView {
    source: Source,
    /// First byte of the stored tensor.
    offset: u64,
    dtype: DType,
    /// Element (0, 0), counted from `offset`.
    first: u64,
    rows: usize,
    cols: usize,
    /// Elements from one stored row to the next.
    stride: u64,
    transposed: bool,
}

impl MatrixView {
    /// A view of `rows × cols` elements stored from byte `offset` on.
    ///
    /// `transposed` says that the storage is `[cols, rows]`.
    ///
    /// # Errors
    /// [`WeightsError::View`] for types without a numeric value or sizes beyond
    /// 64 bits, [`WeightsError::OutOfBounds`] where the source is shorter.
    pub fn new(
        source: impl Into<Source>,
        offset: u64,
        dtype: DType,
        rows: usize,
        cols: usize,
        transposed: bool,
    ) -> Result<MatrixView> {
        let source = source.into();
        let fault = |problem| view_error(&source, problem);
        if !decode::is_supported(dtype) {
            return Err(fault(format!("{dtype} has no value as f32")));
        }
        let elements = (rows as u64).checked_mul(cols as u64);
        let bytes = elements.and_then(|n| dtype.bytes_for(n));
        let bytes = bytes.ok_or_else(|| fault(format!("[{rows}, {cols}] overflows 64 bits")))?;
        source.slice(offset, bytes)?;
        let stride = if transposed { rows } else { cols } as u64;
        Ok(MatrixView {
            source,
            offset,
            dtype,
            first: 0,
            rows,
            cols,
            stride,
            transposed,
        })
    }

    /// Rows (`out`).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (`in`).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Type of the stored elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// True where the storage is `[cols, rows]`.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Where the bytes are.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The view of some of the rows.
    ///
    /// # Errors
    /// [`WeightsError::View`] for rows that there aren't.
    pub fn row_range(&self, rows: Range<usize>) -> Result<MatrixView> {
        self.check(&rows, self.rows, "rows")?;
        let step = if self.transposed { 1 } else { self.stride };
        Ok(MatrixView {
            first: self.first + rows.start as u64 * step,
            rows: rows.len(),
            ..self.clone()
        })
    }

    /// The view of some of the columns.
    ///
    /// # Errors
    /// [`WeightsError::View`] for columns that there aren't.
    pub fn column_range(&self, cols: Range<usize>) -> Result<MatrixView> {
        self.check(&cols, self.cols, "columns")?;
        let step = if self.transposed { self.stride } else { 1 };
        Ok(MatrixView {
            first: self.first + cols.start as u64 * step,
            cols: cols.len(),
            ..self.clone()
        })
    }

    /// The transposed view of the same storage.
    pub fn transpose(&self) -> MatrixView {
        MatrixView {
            rows: self.cols,
            cols: self.rows,
            transposed: !self.transposed,
            ..self.clone()
        }
    }

    /// Decodes rows into `out`, `[rows.len(), cols]` row-major, as f32.
    ///
    /// Cost: the bytes of the rows. A transposed matrix is gathered in blocks,
    /// and each call touches every page of it, so take many rows at a time.
    ///
    /// # Errors
    /// [`WeightsError::View`] where rows or `out.len()` don't fit,
    /// [`WeightsError::OutOfBounds`] where the file has shrunk.
    pub fn read_rows_f32(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.check(&rows, self.rows, "rows")?;
        // Rows and columns are bounded by bytes that exist, unless one is 0.
        let wanted = rows.len().saturating_mul(self.cols);
        if out.len() != wanted {
            let problem = format!("{} f32 are offered for {wanted} elements", out.len());
            return Err(view_error(&self.source, problem));
        }
        if wanted == 0 {
            return Ok(());
        }
        if self.transposed {
            return self.gather(rows, out);
        }
        let stored = self.span(&rows)?;
        if self.stride == self.cols as u64 {
            stored.decode(0, out);
            return Ok(());
        }
        for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
            stored.decode(row as u64 * self.stride, out);
        }
        Ok(())
    }

    /// The stored bytes of rows, where they are contiguous and whole bytes.
    ///
    /// They are not aligned to the element. `None` for transposed or strided
    /// views, for rows that there aren't, and for a file that has shrunk.
    pub fn raw_rows(&self, rows: Range<usize>) -> Option<&[u8]> {
        let whole = self.check(&rows, self.rows, "rows").is_ok();
        let dense = self.stride == self.cols as u64 || rows.len() == 1;
        if !whole || self.transposed || !dense {
            return None;
        }
        let bits = u64::from(self.dtype.bits());
        let begin = (self.first + rows.start as u64 * self.stride) * bits;
        let len = rows.len() as u64 * self.cols as u64 * bits;
        if !begin.is_multiple_of(8) || !len.is_multiple_of(8) {
            return None;
        }
        self.source.slice(self.offset + begin / 8, len / 8).ok()
    }

    /// Gives back the pages of rows; for a transposed view, of the whole matrix
    /// once its last row is among them.
    pub fn release_rows(&self, rows: Range<usize>) {
        let (begin, elements) = if self.transposed {
            if rows.end < self.rows {
                return;
            }
            (self.first, self.cols as u64 * self.stride)
        } else {
            let begin = self.first + rows.start as u64 * self.stride;
            (begin, rows.len() as u64 * self.stride)
        };
        let bits = u128::from(self.dtype.bits());
        let bytes = |elements: u64| u64::try_from(u128::from(elements) * bits / 8).unwrap_or(0);
        let offset = self.offset.saturating_add(bytes(begin));
        self.source
            .release(offset, bytes(elements).saturating_add(1));
    }

    /// The stored bytes from the first to the last element of some rows.
    fn span(&self, rows: &Range<usize>) -> Result<Span<'_>> {
        // All views lie within the tensor that `new` checked: no overflow.
        let (row_step, col_step) = match self.transposed {
            true => (1, self.stride),
            false => (self.stride, 1),
        };
        let first = self.first + rows.start as u64 * row_step;
        let last = first
            + (rows.len() as u64).saturating_sub(1) * row_step
            + (self.cols as u64).saturating_sub(1) * col_step;
        let bits = u64::from(self.dtype.bits());
        let (begin, end) = (first * bits, (last + 1) * bits);
        let offset = self.offset + begin / 8;
        Ok(Span {
            bytes: self.source.slice(offset, end.div_ceil(8) - begin / 8)?,
            bit: begin % 8,
            dtype: self.dtype,
        })
    }

    /// Reads rows of the view, which are columns of the storage.
    fn gather(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let stored = self.span(&rows)?;
        let mut block = [[0_f32; BLOCK_ROWS]; BLOCK_COLS];
        let cols = self.cols;
        for col0 in (0..cols).step_by(BLOCK_COLS) {
            let block_cols = BLOCK_COLS.min(cols - col0);
            for row0 in (0..rows.len()).step_by(BLOCK_ROWS) {
                let block_rows = BLOCK_ROWS.min(rows.len() - row0);
                for (c, line) in block.iter_mut().take(block_cols).enumerate() {
                    let element = (col0 + c) as u64 * self.stride + row0 as u64;
                    stored.decode(element, line.get_mut(..block_rows).unwrap_or_default());
                }
                let lines = out.get_mut(row0 * cols..).unwrap_or_default();
                let lines = lines.chunks_exact_mut(cols).take(block_rows);
                for (r, line) in lines.enumerate() {
                    let line = line.get_mut(col0..col0 + block_cols).unwrap_or_default();
                    let r = r % BLOCK_ROWS;
                    match line.first_chunk_mut::<BLOCK_COLS>() {
                        Some(line) => *line = std::array::from_fn(|c| block[c][r]),
                        None => line.iter_mut().zip(&block).for_each(|(to, b)| *to = b[r]),
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&self, range: &Range<usize>, limit: usize, what: &str) -> Result<()> {
        if range.start <= range.end && range.end <= limit {
            return Ok(());
        }
        let Range { start, end } = range;
        let problem = format!("{what} {start}..{end} of a matrix with {limit}");
        Err(view_error(&self.source, problem))
    }
}

/// Stored elements, the first one `bit` bits into `bytes`.
struct Span<'a> {
    bytes: &'a [u8],
    bit: u64,
    dtype: DType,
}

impl Span<'_> {
    /// Decodes consecutive elements from the given one on.
    fn decode(&self, element: u64, out: &mut [f32]) {
        let bit = self.bit + element * u64::from(self.dtype.bits());
        let bytes = self.bytes.get((bit / 8) as usize..).unwrap_or_default();
        decode::decode_from_bit(self.dtype, bytes, (bit % 8) as u32, out);
    }
}

fn view_error(source: &Source, problem: String) -> WeightsError {
    WeightsError::View {
        path: source.path().to_path_buf(),
        problem,
    }
}

#[cfg(test)]
mod tests;
