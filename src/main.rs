//! `hlrc-opt`: the command line of the library `hlrc`.

fn main() -> std::process::ExitCode {
    hlrc::cli::main()
}
