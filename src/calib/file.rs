//! Statistics in a file, read one site at a time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{CalibError, Result};
use super::imatrix::Imatrix;
use super::metadata::{ENTRY, Metadata, SiteInput, VERSION};
use super::write::names;
use crate::ir::Role;
use crate::ir::site::Site;
use crate::weights::{DType, Header, MappedFile, TensorInfo};

/// A file of statistics. Opening it reads the header only.
pub struct Statistics {
    path: PathBuf,
    file: Arc<MappedFile>,
    tensors: HashMap<String, TensorInfo>,
    metadata: Metadata,
    imatrix: Option<Imatrix>,
}

/// What is known of the input of one site.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteStatistics {
    /// `H = Σ x xᵀ`, `[in, in]` row-major, both triangles; none where only the diagonal is known.
    pub hessian: Option<Vec<f32>>,
    /// Its diagonal: Σ x², `[in]`. Zero where the input is dead.
    pub diag: Vec<f32>,
    /// Tokens in the sums.
    pub tokens: u64,
    /// Tokens that an expert got, where the site is an expert's.
    pub routed: Option<u64>,
    /// Of an expert with fewer tokens than inputs: how many tokens of the average over all experts
    /// were added to its own, so that the sums have as many as inputs.
    pub borrowed: u64,
}

/// Whether a path is a file of statistics rather than a text, by its first bytes.
pub fn is_statistics(path: &Path) -> bool {
    let mut start = [0u8; 9];
    let read =
        std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut start));
    // A header of safetensors: its length, well below 2^32, and a brace.
    read.is_ok() && (start.starts_with(b"GGUF") || start[4..] == *b"\0\0\0\0{")
}

impl SiteStatistics {
    /// Inputs that were zero on every token.
    pub fn dead(&self) -> usize {
        self.diag.iter().filter(|&&d| d == 0.0).count()
    }
}

impl Statistics {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`CalibError::Weights`] for what is no safetensors file, [`CalibError::Format`] for what holds
    /// no statistics or those of a later version. An importance matrix of llama.cpp (GGUF) opens too:
    /// diagonals by llama.cpp's names, found by ours as well.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        if file.slice(0, file.len().min(4))? == b"GGUF" {
            let (imatrix, metadata) = Imatrix::open(path)?;
            return Ok(Self {
                path: path.to_path_buf(),
                file,
                tensors: HashMap::new(),
                metadata,
                imatrix: Some(imatrix),
            });
        }
        let header = Header::read(&file)?;
        let entry = header.metadata.iter().find(|(name, _)| name == ENTRY);
        let none = || CalibError::format(path, "holds tensors, but no calibration statistics");
        let (_, text) = entry.ok_or_else(none)?;
        let damaged = |e: serde_json::Error| {
            CalibError::format(path, format!("its description is damaged: {e}"))
        };
        let version: Version = serde_json::from_str(text).map_err(damaged)?;
        if version.version != VERSION {
            let problem = format!(
                "has version {} of the format, this program knows {VERSION}",
                version.version
            );
            return Err(CalibError::format(path, problem));
        }
        Ok(Self {
            path: path.to_path_buf(),
            file,
            tensors: header
                .tensors
                .into_iter()
                .map(|t| (t.name.clone(), t))
                .collect(),
            metadata: serde_json::from_str(text).map_err(damaged)?,
            imatrix: None,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names of the sites that it knows, sorted.
    pub fn sites(&self) -> impl Iterator<Item = &str> {
        self.metadata.sites.keys().map(String::as_str)
    }

    /// Width of a site's input, from the header alone; `None` for a site that it does not know.
    pub fn width(&self, site: &str) -> Option<u64> {
        if let Some(imatrix) = &self.imatrix {
            return imatrix.width(site);
        }
        let key = self.metadata.sites.get(site)?.inputs.first()?;
        self.tensors.get(&names(key)[1])?.shape.first().copied()
    }

    /// What is known of a site's input; `None` for a site that the file does not know.
    ///
    /// Memory: two matrices `[in, in]` of f32 while an expert borrows, else one.
    ///
    /// # Errors
    /// [`CalibError::Format`] where tensors are missing, of another shape, or no sums of squares.
    pub fn site(&self, site: &str) -> Result<Option<SiteStatistics>> {
        self.read(site, true)
    }

    /// As [`Statistics::site`], without the matrix.
    ///
    /// # Errors
    /// As there.
    pub fn diagonal(&self, site: &str) -> Result<Option<SiteStatistics>> {
        self.read(site, false)
    }

    fn read(&self, site: &str, whole: bool) -> Result<Option<SiteStatistics>> {
        if let Some(imatrix) = &self.imatrix {
            return imatrix.site(&self.path, site);
        }
        let Some(input) = self.metadata.sites.get(site) else {
            return Ok(None);
        };
        let mut all: Option<SiteStatistics> = None;
        for key in &input.inputs {
            let one = self.key(key, whole)?;
            match &mut all {
                None => all = Some(one),
                Some(all) => self.add(all, &one, 1.0)?,
            }
        }
        let Some(mut found) = all else {
            return Ok(None);
        };
        self.borrow(input, whole, &mut found)?;
        if let Some((key, expert)) = &input.expert {
            let counts = self.integers(&format!("{key}.tokens"))?;
            found.routed = counts.get(*expert).copied();
        }
        Ok(Some(found))
    }

    /// Adds tokens of the average over all experts, where the expert's own are fewer than its inputs.
    fn borrow(&self, input: &SiteInput, whole: bool, found: &mut SiteStatistics) -> Result<()> {
        let Some(pool) = &input.pool else {
            return Ok(());
        };
        let missing = (found.diag.len() as u64).saturating_sub(found.tokens);
        if missing == 0 {
            return Ok(());
        }
        let pool = self.key(pool, whole)?;
        if pool.tokens == 0 {
            return Ok(());
        }
        let tokens = found.tokens;
        self.add(found, &pool, (missing as f64 / pool.tokens as f64) as f32)?;
        found.tokens = tokens;
        found.borrowed = missing;
        Ok(())
    }

    fn add(&self, all: &mut SiteStatistics, one: &SiteStatistics, weight: f32) -> Result<()> {
        if all.diag.len() != one.diag.len() {
            let problem = "a matrix is used with inputs of two widths";
            return Err(CalibError::format(&self.path, problem));
        }
        let sum = |to: &mut [f32], from: &[f32]| {
            to.iter_mut().zip(from).for_each(|(a, b)| *a += weight * b);
        };
        sum(&mut all.diag, &one.diag);
        if let (Some(to), Some(from)) = (&mut all.hessian, &one.hessian) {
            sum(to, from);
        }
        all.tokens = all.tokens.saturating_add(one.tokens);
        Ok(())
    }

    /// The sums of one key.
    pub(super) fn key(&self, key: &str, whole: bool) -> Result<SiteStatistics> {
        let [packed, diag, tokens] = names(key);
        let damaged = |what: &str| CalibError::format(&self.path, format!("{key}: {what}"));
        let count = self.integers(&tokens)?.first().copied();
        let diag = self.floats(&diag)?;
        if diag.iter().any(|d| !d.is_finite() || *d < 0.0) {
            return Err(damaged("its diagonal holds what is no sum of squares"));
        }
        let n = diag.len();
        let hessian = match whole && self.tensors.contains_key(&packed) {
            false => None,
            true => {
                let values = self.floats(&packed)?;
                if n.checked_add(1)
                    .and_then(|m| m.checked_mul(n))
                    .map(|m| m / 2)
                    != Some(values.len())
                {
                    return Err(damaged("its matrix and its diagonal differ in size"));
                }
                if values.iter().any(|v| !v.is_finite()) {
                    return Err(damaged("its matrix holds NaN or infinity"));
                }
                Some(unpack(&values, n))
            }
        };
        Ok(SiteStatistics {
            hessian,
            diag,
            tokens: count.ok_or_else(|| damaged("its number of tokens is missing"))?,
            routed: None,
            borrowed: 0,
        })
    }

    /// The packed triangle of one key, for adding files up.
    pub(super) fn packed(&self, key: &str) -> Result<Vec<f32>> {
        let [packed, ..] = names(key);
        self.floats(&packed)
    }

    /// Keys in the order of the file.
    pub(super) fn keys(&self) -> Result<Vec<String>> {
        if self.imatrix.is_some() {
            let problem = "is an importance matrix; llama-imatrix --in-file adds those up";
            return Err(CalibError::format(&self.path, problem));
        }
        let counts = self
            .tensors
            .values()
            .filter_map(|t| Some((t.offset, t.name.strip_suffix(".tokens")?.to_string())));
        let mut keys: Vec<(u64, String)> = counts.collect();
        keys.sort();
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }

    /// Whether a key has nothing but counts.
    pub(super) fn is_counts(&self, key: &str) -> bool {
        let [_, diag, tokens] = names(key);
        self.tensors.contains_key(&tokens) && !self.tensors.contains_key(&diag)
    }

    /// Checks the file against a model, and tells which of the sites it says nothing of.
    ///
    /// # Errors
    /// [`CalibError::Unlike`] where it knows none of the sites, or one with another width.
    pub fn check(&self, model: &str, sites: &[Site]) -> Result<Vec<String>> {
        let unlike = |problem: String| CalibError::Unlike {
            a: self.path.display().to_string(),
            b: model.to_string(),
            problem,
        };
        let table = |site: &&Site| site.roles.iter().all(|role| *role == Role::Embedding);
        let (mut known, mut without) = (0, Vec::new());
        for site in sites.iter().filter(|site| !table(site)) {
            match self.width(&site.name) {
                Some(width) if width != site.cols => {
                    let problem = format!("{} takes {} inputs, not {width}", site.name, site.cols);
                    return Err(unlike(problem));
                }
                Some(_) => known += 1,
                None => without.push(site.name.clone()),
            }
        }
        match (known, without.first()) {
            (0, Some(first)) => {
                let has = self.sites().next().unwrap_or("nothing");
                let problem = format!(
                    "none of the model's linears is known, such as {first}; the file has, such as {has}"
                );
                Err(unlike(problem))
            }
            _ => Ok(without),
        }
    }

    fn bytes(&self, name: &str, dtype: DType) -> Result<(&[u8], &TensorInfo)> {
        let missing = || CalibError::format(&self.path, format!("tensor {name} is missing"));
        let info = self.tensors.get(name).ok_or_else(missing)?;
        if info.dtype != dtype {
            let problem = format!("tensor {name} is {}, not {dtype}", info.dtype);
            return Err(CalibError::format(&self.path, problem));
        }
        Ok((self.file.slice(info.offset, info.bytes)?, info))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let (bytes, info) = self.bytes(name, DType::F32)?;
        let values = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b));
        let values = values.collect();
        self.file.release(info.offset, info.bytes);
        Ok(values)
    }

    pub(super) fn integers(&self, name: &str) -> Result<Vec<u64>> {
        let (bytes, _) = self.bytes(name, DType::U64)?;
        Ok(bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| u64::from_le_bytes(*b))
            .collect())
    }
}

#[derive(serde::Deserialize)]
struct Version {
    version: u32,
}

/// Both triangles of a packed upper one.
fn unpack(packed: &[f32], n: usize) -> Vec<f32> {
    let mut full = vec![0f32; n * n];
    let mut rest = packed;
    for i in 0..n {
        let (row, behind) = rest.split_at((n - i).min(rest.len()));
        rest = behind;
        for (j, &value) in (i..n).zip(row) {
            full[i * n + j] = value;
            full[j * n + i] = value;
        }
    }
    full
}
