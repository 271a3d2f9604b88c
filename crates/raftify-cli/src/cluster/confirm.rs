//! Asks the operator before a command that cannot be undone.

use std::io::{self, IsTerminal, Write};

use crate::failure::{Exit, Failure};

/// Asks on the terminal; with `yes`, does not ask.
///
/// # Errors
/// The answer is not yes, or there is no terminal.
pub(crate) fn confirm(what: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let input = io::stdin();
    if !input.is_terminal() {
        let text = format!(
            "{what}: this has to be confirmed, and there is no terminal: give --yes to do it without asking"
        );
        return Err(Failure::new(Exit::NotConfirmed, text));
    }
    answered(what, &mut io::stderr(), || {
        let mut line = String::new();
        input.read_line(&mut line).map(|_| line)
    })
}

fn answered(
    what: &str,
    output: &mut dyn Write,
    read: impl FnOnce() -> io::Result<String>,
) -> Result<(), Failure> {
    // If the question cannot be shown, the answer is no.
    let asked = write!(output, "{what}. Continue? [y/N] ").and_then(|()| output.flush());
    let answer = asked.and_then(|()| read()).unwrap_or_default();
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::NotConfirmed, "not confirmed: nothing was changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_a_confirmation_and_the_end_of_the_input_is_none() {
        let mut shown = Vec::new();
        let mut answer = |line: &str| answered("removes node 3", &mut shown, || Ok(line.to_owned()));
        for line in ["y\n", "YES\n", " yes "] {
            assert!(answer(line).is_ok(), "{line:?}");
        }
        for line in ["", "\n", "n\n", "yeah\n", "y y\n"] {
            assert_eq!(answer(line).unwrap_err().exit, Exit::NotConfirmed, "{line:?}");
        }
        assert!(answered("", &mut io::sink(), || Err(io::ErrorKind::UnexpectedEof.into())).is_err());
        assert!(String::from_utf8(shown).unwrap().starts_with("removes node 3. Continue? [y/N] "));
    }
}
