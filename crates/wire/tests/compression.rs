//! Content codings: what is inflated, what is refused, what is answered with.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::expect_refusal;
use penstock_schema::Code::{InvalidArgument, TooLarge, UnsupportedMedia};
use penstock_wire::compress::{Encoding, accept, content_encoding, deflate, inflate};

const BOTH: [Encoding; 2] = [Encoding::Gzip, Encoding::Deflate];

#[test]
fn what_was_deflated_inflates() {
    for encoding in BOTH {
        for plain in [vec![], b"a".to_vec(), vec![7; 1_000_000], (0..200_000u32).flat_map(u32::to_le_bytes).collect()] {
            let (head, tail) = plain.split_at(plain.len() / 3);
            let body = deflate(encoding, &[head, tail]);
            assert_eq!(inflate(encoding, &body, plain.len()).unwrap(), plain);
        }
    }
}

#[test]
fn bombs_are_refused_while_inflating() {
    for encoding in BOTH {
        let bomb = deflate(encoding, &vec![vec![0u8; 1 << 20]; 4]);
        assert!(bomb.len() < 1 << 16);
        expect_refusal("4 MiB of zeros", inflate(encoding, &bomb, 1 << 16), TooLarge, &["65536"]);
        let over = deflate(encoding, &[[1u8; 101]]);
        expect_refusal("one over", inflate(encoding, &over, 100), TooLarge, &["100"]);
        expect_refusal("limit 0", inflate(encoding, &over, 0), TooLarge, &["0"]);
    }
}

#[test]
fn cut_and_foreign_streams_are_refused() {
    for encoding in BOTH {
        let whole = deflate(encoding, &[b"some plain text, some plain text".as_slice()]);
        for length in 0..whole.len() {
            expect_refusal("cut", inflate(encoding, &whole[..length], 1_000), InvalidArgument, &["compressed body"]);
        }
        let trailing = [&whole[..], b"x"].concat();
        expect_refusal("trailing byte", inflate(encoding, &trailing, 1_000), InvalidArgument, &["1 bytes behind"]);
        let twice = [&whole[..], &whole].concat();
        expect_refusal("two streams", inflate(encoding, &twice, 1_000), InvalidArgument, &["one stream"]);
        expect_refusal("plain", inflate(encoding, b"{\"inputs\":[]}", 1_000), InvalidArgument, &["compressed body"]);
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        expect_refusal("checksum", inflate(encoding, &flipped, 1_000), InvalidArgument, &["compressed body"]);
    }
    let gzip = deflate(Encoding::Gzip, &[b"a"]);
    expect_refusal("gzip as deflate", inflate(Encoding::Deflate, &gzip, 10), InvalidArgument, &["compressed body"]);
}

#[test]
fn content_encodings_are_known_or_415() {
    for (header, expected) in [
        ("gzip", Some(Encoding::Gzip)),
        (" X-GZip ", Some(Encoding::Gzip)),
        ("deflate", Some(Encoding::Deflate)),
        ("identity", None),
        ("", None),
    ] {
        assert_eq!(content_encoding(header).unwrap(), expected, "{header:?}");
    }
    for header in ["br", "gzip, gzip", "zstd", "gzip;q=1", "\u{1}"] {
        expect_refusal(header, content_encoding(header), UnsupportedMedia, &["gzip, deflate or identity"]);
    }
}

#[test]
fn the_best_accepted_coding_wins() {
    let (gzip, deflate) = (Some(Encoding::Gzip), Some(Encoding::Deflate));
    for (header, expected) in [
        ("", None),
        ("gzip", gzip),
        ("GZIP", gzip),
        ("deflate", deflate),
        ("deflate, gzip", gzip),
        ("gzip;q=0.5, deflate;q=0.8", deflate),
        ("gzip ; Q=0.5 , deflate ; q=0.4", gzip),
        ("gzip;q=0", None),
        ("gzip;q=0, *", deflate),
        ("*", gzip),
        ("*;q=0", None),
        ("br", None),
        ("identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip;q=0.5", gzip),
        ("gzip;q=nan", None),
        ("gzip;q=2", None),
        ("gzip;level=9;q=0.3", gzip),
    ] {
        assert_eq!(accept(header), expected, "{header:?}");
    }
}
