//! PCI addresses: `domain:bus:device.function`.

use std::fmt;
use std::str::FromStr;

/// PCI address of a function of a card. Functions count on into the next device of the bus, as virtual functions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    pub domain: u16,
    pub bus: u8,
    /// Device and function: `device << 3 | function`.
    pub devfn: u8,
}

impl PciAddress {
    /// The address at which a card's Arm side sees its first port.
    pub const FIRST: PciAddress = PciAddress { domain: 0, bus: 3, devfn: 0 };

    /// The function `count` further; None beyond the end of the bus.
    pub(crate) fn further(self, count: u32) -> Option<PciAddress> {
        let devfn = u8::try_from(u32::from(self.devfn).checked_add(count)?).ok()?;
        Some(PciAddress { devfn, ..self })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.devfn >> 3, self.devfn & 7)
    }
}

impl FromStr for PciAddress {
    type Err = ();

    /// `03:00.1`, with or without a domain before it; no function is function 0.
    fn from_str(text: &str) -> Result<PciAddress, ()> {
        let hex = |text: &str, digits: usize, max: u16| -> Result<u16, ()> {
            let fits = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let value = if fits { u16::from_str_radix(text, 16).map_err(|_| ())? } else { return Err(()) };
            if value <= max { Ok(value) } else { Err(()) }
        };
        let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
        let (domain, rest) = if slot.len() > 5 { slot.split_once(':').ok_or(())? } else { ("0000", slot) };
        let (bus, device) = rest.split_once(':').ok_or(())?;
        let devfn = hex(device, 2, 0x1f)? << 3 | hex(function, 1, 7)?;
        Ok(PciAddress { domain: hex(domain, 4, u16::MAX)?, bus: hex(bus, 2, 0xff)? as u8, devfn: devfn as u8 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for (text, full) in [("03:00", "0000:03:00.0"), ("b1:1f.7", "0000:b1:1f.7"), ("0001:3B:02.1", "0001:3b:02.1")] {
            assert_eq!(text.parse::<PciAddress>().map(|address| address.to_string()), Ok(full.to_owned()));
        }
        for text in ["", "03", "3:0.0", "03:20.0", "03:00.8", "03:00.", "03:00.0.0", "1:03:00.0", "mlx5_0"] {
            assert_eq!(text.parse::<PciAddress>(), Err(()), "{text}");
        }
    }

    #[test]
    fn functions_count_on_into_the_next_device_and_not_into_the_next_bus() {
        let first: PciAddress = "b1:00.6".parse().expect("an address");
        assert_eq!(first.further(2).map(|next| next.to_string()), Some("0000:b1:01.0".to_owned()));
        assert_eq!((first.further(249).map(|last| last.devfn), first.further(250)), (Some(255), None));
        assert_eq!(first.further(u32::MAX), None);
    }
}
