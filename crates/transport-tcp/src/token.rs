//! What epoll hands back: which socket an event is about.

/// One registered socket. Generations tell an event that was still queued for a closed socket from its slot's next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The listening socket.
    Door,
    /// A connection that has not said who it is.
    HalfOpen { slot: usize, generation: u32 },
    /// A stream of an endpoint.
    Stream { slot: usize, stream: usize, generation: u32 },
}

const KIND_DOOR: u64 = 0;
const KIND_HALF_OPEN: u64 = 1;
const KIND_STREAM: u64 = 2;

impl Token {
    /// As epoll keeps it: kind 8 bits, stream 8, slot 16, generation 32. The settings' limits keep each in its bits.
    pub(crate) const fn to_u64(self) -> u64 {
        let (kind, stream, slot, generation) = match self {
            Self::Door => (KIND_DOOR, 0, 0, 0),
            Self::HalfOpen { slot, generation } => (KIND_HALF_OPEN, 0, slot, generation),
            Self::Stream { slot, stream, generation } => (KIND_STREAM, stream, slot, generation),
        };
        debug_assert!(stream < 1 << 8 && slot < 1 << 16, "a limit in the settings is too high");
        kind << 56 | (stream as u64) << 48 | (slot as u64) << 32 | generation as u64
    }

    /// Back from epoll. `None` for what was never registered.
    pub(crate) const fn from_u64(value: u64) -> Option<Self> {
        let (stream, slot) = ((value >> 48 & 0xff) as usize, (value >> 32 & 0xffff) as usize);
        #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are the generation")]
        let generation = value as u32;
        match value >> 56 {
            KIND_DOOR => Some(Self::Door),
            KIND_HALF_OPEN => Some(Self::HalfOpen { slot, generation }),
            KIND_STREAM => Some(Self::Stream { slot, stream, generation }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn tokens_survive_epoll() {
        let tokens = [
            Token::Door,
            Token::HalfOpen { slot: 1023, generation: u32::MAX },
            Token::Stream { slot: 4095, stream: 63, generation: 7 },
        ];
        for token in tokens {
            assert_eq!(Token::from_u64(token.to_u64()), Some(token));
        }
        assert_eq!(Token::from_u64(u64::MAX), None);
    }
}
