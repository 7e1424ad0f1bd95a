//! Compilers of CUDA kernels on this machine, for plans that take machine code along.

use super::RuntimeError;
use crate::plan::Variant;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A compiler of CUDA kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// NVIDIA's compiler driver, at this path.
    Nvcc(PathBuf),
    /// NVRTC, a library.
    #[cfg(feature = "cuda")]
    Nvrtc,
}

impl Compiler {
    /// `nvcc` as `NVCC` names it, of `CUDA_HOME` or in `PATH`; else NVRTC. An empty `NVCC` names none.
    ///
    /// # Errors
    /// There is none, or `NVCC` names a file that is not there.
    pub fn find() -> Result<Self, RuntimeError> {
        let name = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
        if let Some(named) = std::env::var_os("NVCC").filter(|named| !named.is_empty()) {
            let path = PathBuf::from(named);
            if path.is_file() {
                return Ok(Self::Nvcc(path));
            }
            let problem = format!("NVCC names {}, which is no file", path.display());
            return Err(RuntimeError::NoCompiler(problem));
        }
        let home = std::env::var_os("CUDA_HOME").or_else(|| std::env::var_os("CUDA_PATH"));
        let home = home.map(|home| PathBuf::from(home).join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = home.into_iter().chain(std::env::split_paths(&path));
        let found = folders.map(|f| f.join(name)).find(|nvcc| nvcc.is_file());
        if let Some(nvcc) = found {
            return Ok(Self::Nvcc(nvcc));
        }
        #[cfg(feature = "cuda")]
        if super::cuda::has_nvrtc() {
            return Ok(Self::Nvrtc);
        }
        let problem = "there is no nvcc in PATH (NVCC or CUDA_HOME name one elsewhere) and no NVRTC \
                       (the packages nvidia-cuda-nvcc and nvidia-cuda-nvrtc have them)";
        Err(RuntimeError::NoCompiler(problem.to_string()))
    }

    /// Compiles a variant for an architecture to a file; `sources` is a folder with the kernels' sources.
    ///
    /// # Errors
    /// It does not compile; the compiler's word is in the message.
    pub fn compile(
        &self,
        variant: &Variant,
        arch: &str,
        sources: &Path,
        out: &Path,
    ) -> Result<(), RuntimeError> {
        match self {
            Self::Nvcc(nvcc) => by_nvcc(nvcc, variant, arch, sources, out),
            #[cfg(feature = "cuda")]
            Self::Nvrtc => {
                let cubin = super::cuda::machine_code(variant, arch)?;
                std::fs::write(out, cubin).map_err(|e| failed(variant, arch, e.to_string()))
            }
        }
    }
}

fn failed(variant: &Variant, arch: &str, log: String) -> RuntimeError {
    RuntimeError::Compile {
        kernel: crate::plan::text::variant_text(variant),
        arch: arch.to_string(),
        log,
    }
}

fn by_nvcc(
    nvcc: &Path,
    variant: &Variant,
    arch: &str,
    sources: &Path,
    out: &Path,
) -> Result<(), RuntimeError> {
    let mut command = Command::new(nvcc);
    command
        .args(["-std=c++17", "-O3", "-cubin"])
        .arg(format!("-arch={arch}"))
        .args(variant.defines.iter().map(|(k, v)| format!("-D{k}={v}")))
        .arg("-o")
        .arg(out)
        .arg(sources.join(format!("{}.cu", variant.kernel)));
    let output = command
        .output()
        .map_err(|e| failed(variant, arch, format!("{}: {e}", nvcc.display())))?;
    if output.status.success() {
        return Ok(());
    }
    let told = [output.stdout, output.stderr].concat();
    Err(failed(
        variant,
        arch,
        String::from_utf8_lossy(&told).into_owned(),
    ))
}
