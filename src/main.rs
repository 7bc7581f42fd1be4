//! The `sojourn` command.

mod cli;
mod heat;

fn main() -> std::process::ExitCode {
    cli::main()
}
