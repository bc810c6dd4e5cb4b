//! What the driver needs on this machine: the PC/SC service.

use claviger_token::Error;
use claviger_token::needs::Need;

use crate::backend::SCHEME;
use crate::reader::{Readers, Unreachable};

/// The service, and why it cannot be reached, if so.
pub(crate) fn of(readers: &dyn Readers) -> Vec<Need> {
    let missing = readers.list().err();
    let missing = missing.map(|Unreachable { what, reason }| Error::System { what, reason });
    vec![Need::new("the smartcard service", format!("{SCHEME}:")).missing(missing)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apdu::Lost;
    use crate::reader::Link;

    struct Service(Result<(), Unreachable>);

    impl Readers for Service {
        fn list(&self) -> Result<Vec<String>, Unreachable> {
            self.0.clone().map(|()| Vec::new())
        }

        fn connect(&self, _: &str) -> Result<Box<dyn Link>, Lost> {
            Err(Lost::new("no reader"))
        }
    }

    #[test]
    fn a_service_that_cannot_be_reached_is_missing_and_one_without_cards_is_not() {
        let missing = |service: Service| {
            let mut needs = of(&service);
            assert_eq!((needs.len(), &*needs[0].backend), (1, "piv:"));
            needs.remove(0).missing.map(|error| error.to_string())
        };
        assert_eq!(missing(Service(Ok(()))), None);
        let stopped = Unreachable {
            what: "the smartcard service cannot be reached".into(),
            reason: "pcscd is not running".into(),
        };
        assert_eq!(
            missing(Service(Err(stopped))).as_deref(),
            Some("the smartcard service cannot be reached: pcscd is not running")
        );
    }
}
