#!/usr/bin/env python3
"""Verifies an exported log of counted votes: a second implementation, which shares no code with the first.

Usage: verify.py DIR VKEY [--rows FILE] [--totals FILE]

Prints one JSON object, and ends with 1 if anything is wrong. The formats are in docs/log.md. Standard library only.
"""
import argparse
import base64
import hashlib
import json
import pathlib
import struct
import sys

# Ed25519, RFC 8032.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def recover_x(y, sign):
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P or (x == 0 and sign):
        raise ValueError("no point")
    return P - x if x % 2 != sign else x


def decode(data):
    number = int.from_bytes(data, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    if y >= P:
        raise ValueError("no point")
    x = recover_x(y, sign)
    return x, y, 1, x * y % P


def add(a, b):
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(number, point):
    result = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = add(result, point)
        point, number = add(point, point), number >> 1
    return result


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE = (recover_x(BASE_Y, 0), BASE_Y, 1, recover_x(BASE_Y, 0) * BASE_Y % P)


def is_signed(public, text, signature):
    if len(signature) != 64:
        return False
    try:
        key, commitment = decode(public), decode(signature[:32])
    except ValueError:
        return False
    s = int.from_bytes(signature[32:], "little")
    if s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + text).digest(), "little") % L
    left, right = times(s, BASE), add(commitment, times(k, key))
    return all((left[i] * right[2] - right[i] * left[2]) % P == 0 for i in (0, 1))


def checkpoint(content, vkey):
    """Origin, size and root of a checkpoint that this key signed."""
    name, key_id, key = vkey.strip().split("+", 2)
    key = base64.b64decode(key, validate=True)
    if key[0] != 1 or hashlib.sha256(name.encode() + b"\n" + key).hexdigest()[:8] != key_id:
        raise ValueError("the key's id is wrong")
    text, _, lines = content.decode().rpartition("\n\n")
    text += "\n"
    signed = False
    for line in lines.splitlines():
        dash, signer, signature = line.split(" ")
        signature = base64.b64decode(signature, validate=True)
        if (dash, signer, signature[:4].hex()) == ("\u2014", name, key_id):
            if not is_signed(key[1:], text.encode(), signature[4:]):
                raise ValueError("forged")
            signed = True
    origin, size, root, end = text.split("\n")
    if not signed or origin != name or end or str(int(size)) != size:
        raise ValueError("not signed")
    return int(size), base64.b64decode(root, validate=True)


def root_of(leaves):
    """RFC 6962, section 2.1, level by level."""
    if not leaves:
        return hashlib.sha256().digest()
    while len(leaves) > 1:
        pairs = zip(leaves[::2], leaves[1::2])
        odd = leaves[len(leaves) - len(leaves) % 2:]
        leaves = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs] + odd
    return leaves[0]


def path(kind, number, width):
    groups = [f"{number % 1000:03}"]
    while number >= 1000:
        number //= 1000
        groups.insert(0, f"x{number % 1000:03}")
    return f"tile/{kind}/{'/'.join(groups)}" + (f".p/{width}" if width < 256 else "")


def widths(size):
    return [(number, min(256, size - 256 * number)) for number in range((size + 255) // 256)]


def entry_of(row):
    """The bytes of a row's entry; of one whose citizen_id was erased without its commitment."""
    vote_hash, citizen, law = ((row[name] or "").encode() for name in ("vote_hash", "citizen_id", "law_id"))
    recorded = -(2**63) if row["recorded_at"] is None else row["recorded_at"]
    hidden = bytes([len(vote_hash)]) + vote_hash + struct.pack(">H", len(citizen)) + citizen
    hidden += struct.pack(">qq", row["timestamp"], recorded)
    commitment = hashlib.sha256(b"vote-aggregator/ballot/v1\n" + bytes.fromhex(row["nonce"]) + hidden).digest()
    vote = b"\x01" + bytes([len(law)]) + law + bytes([{"non": 0, "oui": 1}[row["choice"]]])
    return vote if row["citizen_id"] is None else vote + commitment


def verify(folder, vkey, rows, totals):
    size, root = checkpoint((folder / "checkpoint").read_bytes(), vkey)
    entries, leaves = [], []
    for number, width in widths(size):
        tile, bundle = (folder / path(0, number, width)).read_bytes(), (folder / path("entries", number, width)).read_bytes()
        leaves += [tile[at:at + 32] for at in range(0, len(tile), 32)]
        while bundle:
            length = int.from_bytes(bundle[:2], "big")
            entries.append(bundle[2:2 + length])
            bundle = bundle[2 + length:]
    if [hashlib.sha256(b"\x00" + entry).digest() for entry in entries] != leaves or len(leaves) != size:
        raise ValueError("entries are not those of the leaves")
    if root_of(leaves) != root:
        raise ValueError("the root is another")
    for kept in (folder / "checkpoints").iterdir():
        before, earlier = checkpoint(kept.read_bytes(), vkey)
        if str(before) != kept.name or root_of(leaves[:before]) != earlier:
            raise ValueError(f"{kept.name} is of another log")
    level, hashes = 1, leaves
    while len(hashes) >= 256:
        hashes = [root_of(hashes[at:at + 256]) for at in range(0, len(hashes) - 255, 256)]
        for number, width in widths(len(hashes)):
            if (folder / path(level, number, width)).read_bytes() != b"".join(hashes[256 * number:][:width]):
                raise ValueError(f"a tile of level {level} is another")
        level += 1
    sums, lost, erased = {}, set(), set()
    for entry in entries:
        if entry[0] == 4:
            withdrawal = json.loads(entry[1:])
            (lost if withdrawal["kind"] == "lost" else erased).add(withdrawal["index"])
    votes = {index: entry for index, entry in enumerate(entries) if entry[0] == 1 and index not in lost}
    for entry in votes.values():
        law = entry[2:2 + entry[1]].decode()
        sums.setdefault(law, {"oui": 0, "non": 0})["oui" if entry[2 + entry[1]] else "non"] += 1
    if totals is not None:
        found = {law["law_id"]: {"oui": law["oui"], "non": law["non"]} for law in json.loads(totals)["laws"]}
        if found != sums:
            raise ValueError("the results are others")
    if rows is not None:
        found = [json.loads(line) for line in rows.splitlines()]
        hidden = {index: entry[:-32] if index in erased else entry for index, entry in votes.items()}
        if {row["index"]: entry_of(row) for row in found} != hidden or len({row["vote_hash"] for row in found}) != len(votes):
            raise ValueError("the rows are others")
    return {"size": size, "root": base64.b64encode(root).decode(), "laws": sums}


def main():
    parser = argparse.ArgumentParser(description="Verifies an exported log of counted votes.")
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR")
    parser.add_argument("vkey")
    parser.add_argument("--rows", type=pathlib.Path)
    parser.add_argument("--totals", type=pathlib.Path)
    given = parser.parse_args()
    text = [file and file.read_text() for file in (given.rows, given.totals)]
    try:
        print(json.dumps(verify(given.folder, given.vkey, *text)))
    except (ValueError, KeyError, IndexError, OSError, TypeError, struct.error) as error:
        print(json.dumps({"wrong": str(error)}))
        sys.exit(1)


if __name__ == "__main__":
    main()
