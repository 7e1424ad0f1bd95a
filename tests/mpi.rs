//! `mpirun -n 2 hlrc-opt train --mpi` comes to what one process comes to.
//!
//! `cargo test --release --features mpi --test mpi`; skipped where there is no mpirun.
#![cfg(feature = "mpi")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use hlrc::weights::FileCache;
use serde_json::Value;

const STORIES: &str = "tests/fixtures/stories260K";
const TEXT: &str = "tests/fixtures/text/stories.txt";

/// A command of two ranks, or of one process.
fn train(model: &Path, out: &Path, ranks: usize, more: &[&str]) -> Output {
    let tool = env!("CARGO_BIN_EXE_hlrc-opt");
    let mut command = match ranks {
        1 => Command::new(tool),
        _ => {
            let mut command = Command::new("mpirun");
            command.args(["--oversubscribe", "-n", &ranks.to_string(), tool]);
            // Open MPI does not like root, which tests in containers are.
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
            command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            command
        }
    };
    command.arg("train").arg(model).arg("-o").arg(out);
    command.args(["--data", TEXT, "--ctx", "64", "--judge-every", "3"]);
    command.args(["--threads", "1", "--teacher", STORIES, "--json", "-q"]);
    command.args(more);
    if ranks > 1 {
        command.arg("--mpi");
    }
    command.output().expect("started")
}

fn history(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("JSON of one rank")
}

/// All float weights of a folder.
fn values(folder: &Path) -> Vec<f32> {
    let files = FileCache::new();
    let opened = hlrc::import::open(&hlrc::import::Input::Path(folder.to_path_buf()), &files);
    let module = opened.unwrap_or_else(|e| panic!("{e}")).module;
    let reader = hlrc::store::Reader::new(&files);
    let mut all = Vec::new();
    for (index, weight) in module.weights.iter().enumerate() {
        let id = hlrc::ir::WeightId::new(index);
        if weight.dtype == hlrc::weights::DType::F32 {
            let bytes = reader.bytes(&module, id).unwrap_or_else(|e| panic!("{e}"));
            let values = bytes.chunks_exact(4);
            all.extend(values.map(|b| f32::from_le_bytes(b.try_into().expect("four"))));
        }
    }
    all
}

#[test]
fn two_ranks_come_to_what_one_process_comes_to() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        eprintln!("skipped: no mpirun (libopenmpi-dev, openmpi-bin)");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model.hlrc");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    let pipeline = "lowrank{rank=4 factors=f32},outlier,int2";
    command
        .args([STORIES, "-q", "-p", pipeline, "-o"])
        .arg(&model);
    common::succeed(&mut command);
    for mode in ["end-to-end", "blocks"] {
        let more = [
            "--mode",
            mode,
            "--steps",
            "6",
            "--block-steps",
            "2",
            "--batch",
            "2",
            "--accumulate",
            "2",
        ];
        let outs = [1, 2].map(|ranks| folder.path().join(format!("{mode}-{ranks}.hlrc")));
        let [alone, shared] =
            [1, 2].map(|ranks| history(&train(&model, &outs[ranks - 1], ranks, &more)));
        assert_eq!(
            (alone["ranks"].as_u64(), shared["ranks"].as_u64()),
            (None, Some(2))
        );
        let key = if mode == "blocks" {
            "blocks"
        } else {
            "end_to_end"
        };
        assert_eq!(
            alone[key].as_array().map(Vec::len),
            shared[key].as_array().map(Vec::len)
        );
        let (before, [alone, shared]) = (values(&model), outs.each_ref().map(|out| values(out)));
        let moved = before.iter().zip(&alone).filter(|(a, b)| a != b).count();
        assert!(moved > 1000, "{moved}");
        for (a, b) in alone.iter().zip(&shared) {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(0.1), "{mode}: {a} {b}");
        }
        assert!(
            !folder
                .path()
                .join(format!("{mode}-2.hlrc.partial"))
                .exists()
        );
    }
    // A step that leaves a rank with nothing to do is refused, once, with the usual code.
    let out = folder.path().join("none.hlrc");
    let refused = train(&model, &out, 2, &["--steps", "1", "--batch", "1"]);
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert_eq!(errors.matches("for 2 ranks").count(), 1, "{errors}");
    assert!(!out.exists() && !folder.path().join("none.hlrc.partial").exists());
}
