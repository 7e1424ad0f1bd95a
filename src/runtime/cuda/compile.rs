//! Kernel variants to machine code, cached on disk by source, defines, device and compiler.

use super::{Gpu, RuntimeError, driver};
use crate::plan::{Variant, kernels};
use cudarc::driver::CudaFunction;
use cudarc::nvrtc::{Ptx, result, sys};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::path::PathBuf;

/// The functions of all variants on the device, of machine code that is there already (`ready`, by
/// their index); what is neither there nor cached is compiled by all cores.
pub(super) fn functions(
    gpu: &Gpu,
    variants: &[Variant],
    ready: &[Option<Vec<u8>>],
) -> Result<Vec<CudaFunction>, RuntimeError> {
    let arch = gpu.arch();
    let compiled = |(index, variant): (usize, &Variant)| {
        if let Some(cubin) = ready.get(index).and_then(Option::as_ref) {
            return Ok(cubin.clone());
        }
        let source = kernels::flattened(&variant.kernel).ok_or_else(|| {
            RuntimeError::Unfit(format!("kernel `{}` is not known", variant.kernel))
        })?;
        cubin(&arch, &describe(variant), &source, &defines(variant))
    };
    let cubins: Vec<_> = variants.par_iter().enumerate().map(compiled).collect();
    let loaded = variants.iter().zip(cubins);
    loaded
        .map(|(variant, cubin)| from_code(gpu, &variant.kernel, &describe(variant), cubin?))
        .collect()
}

/// A variant's machine code for an architecture, by NVRTC.
pub(in crate::runtime) fn machine_code(
    variant: &Variant,
    arch: &str,
) -> Result<Vec<u8>, RuntimeError> {
    let source = kernels::flattened(&variant.kernel);
    let source = source
        .ok_or_else(|| RuntimeError::Unfit(format!("kernel `{}` is not known", variant.kernel)))?;
    compile(&describe(variant), &source, arch, &defines(variant))
}

/// Whether NVRTC can be loaded.
pub(in crate::runtime) fn has_nvrtc() -> bool {
    // SAFETY: the probe opens a library by name and looks for nothing in it.
    unsafe { sys::is_culib_present() }
}

/// A kernel that is no part of plans.
pub(super) fn load(
    gpu: &Gpu,
    entry: &str,
    name: &str,
    source: &str,
    defines: &[String],
) -> Result<CudaFunction, RuntimeError> {
    let cubin = cubin(&gpu.arch(), name, source, defines)?;
    from_code(gpu, entry, name, cubin)
}

fn from_code(
    gpu: &Gpu,
    entry: &str,
    name: &str,
    cubin: Vec<u8>,
) -> Result<CudaFunction, RuntimeError> {
    let module = gpu
        .context
        .load_module(Ptx::from_binary(cubin))
        .map_err(driver(format!("loading {name}")))?;
    module
        .load_function(entry)
        .map_err(driver(format!("loading {name}")))
}

/// Whether a kernel waits itself for the launch in front of it.
pub(super) fn waits(kernel: &str) -> bool {
    let own = kernels::flattened(kernel);
    own.is_some_and(|source| source.contains("wait_previous_grid();"))
}

fn describe(variant: &Variant) -> String {
    let defines = variant.defines.iter().map(|(k, v)| format!(" {k}={v}"));
    format!("{}{}", variant.kernel, defines.collect::<String>())
}

fn defines(variant: &Variant) -> Vec<String> {
    variant
        .defines
        .iter()
        .map(|(k, v)| format!("-D{k}={v}"))
        .collect()
}

/// The machine code, from the cache or the compiler.
fn cubin(
    arch: &str,
    name: &str,
    source: &str,
    defines: &[String],
) -> Result<Vec<u8>, RuntimeError> {
    let mut hash = Sha256::new();
    for part in [env!("CARGO_PKG_VERSION"), source, arch, &defines.join(" ")] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let key: String = digest[..16].iter().map(|b| format!("{b:02x}")).collect();
    let kept = cache().map(|folder| folder.join(format!("{key}.cubin")));
    if let Some(cubin) = kept.as_ref().and_then(|path| std::fs::read(path).ok()) {
        return Ok(cubin);
    }
    let cubin = compile(name, source, arch, defines)?;
    if let Some(path) = kept {
        // A cache that cannot be written costs time at the next start, no more.
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = written.and_then(|()| std::fs::write(&partial, &cubin));
        let _ = written.and_then(|()| std::fs::rename(&partial, &path));
    }
    Ok(cubin)
}

/// `HLRC_CUBIN_CACHE`, or a folder of the user's cache.
fn cache() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("HLRC_CUBIN_CACHE") {
        return Some(PathBuf::from(folder));
    }
    let own = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base =
        own.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.map(|base| base.join("hlrc-opt/cubin"))
}

fn compile(
    name: &str,
    source: &str,
    arch: &str,
    defines: &[String],
) -> Result<Vec<u8>, RuntimeError> {
    if !has_nvrtc() {
        let problem = "NVRTC (libnvrtc.so, of CUDA 12 or 13) is not installed: it compiles the kernels; \
                       the package nvidia-cuda-nvrtc has it, and LD_LIBRARY_PATH may name its folder";
        return Err(RuntimeError::NoGpu(problem.to_string()));
    }
    let failed = |log: String| RuntimeError::Compile {
        kernel: name.to_string(),
        arch: arch.to_string(),
        log,
    };
    let text = CString::new(source).map_err(|e| failed(e.to_string()))?;
    let file = CString::new(format!("{}.cu", name.split(' ').next().unwrap_or("kernel")))
        .map_err(|e| failed(e.to_string()))?;
    let program = result::create_program(&text, Some(file.as_c_str()))
        .map_err(|e| failed(format!("{e:?}")))?;
    let mut options = vec![
        format!("--gpu-architecture={arch}"),
        "--std=c++17".to_string(),
    ];
    options.extend(defines.iter().cloned());
    // SAFETY: the program was just made and is destroyed below, once; `text` and `file` outlive it.
    unsafe {
        let compiled = result::compile_program(program, &options);
        let log = result::get_program_log(program).unwrap_or_default();
        // A C `char` has another sign on other machines.
        let log: Vec<u8> = log
            .iter()
            .map(|c| c.to_ne_bytes()[0])
            .take_while(|&c| c != 0)
            .collect();
        let made = match compiled {
            Ok(()) => code_of(program).map_err(|e| failed(format!("{e:?}"))),
            Err(error) => Err(failed(format!(
                "{error:?}\n{}",
                String::from_utf8_lossy(&log)
            ))),
        };
        let _ = result::destroy_program(program);
        made
    }
}

/// # Safety
/// `program` was compiled and is not destroyed.
unsafe fn code_of(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut bytes = 0usize;
    // SAFETY: by the caller's promise; the buffer has the size that was asked for.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &raw mut bytes).result()?;
        let mut cubin = vec![0u8; bytes];
        sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
        Ok(cubin)
    }
}
