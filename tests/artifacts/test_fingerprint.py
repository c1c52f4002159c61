"""The golden digests below stand in manifests on people's disks: a change of any of them breaks every old artifact."""

import hashlib

import numpy as np
import pytest

from megatron_miniplm.artifacts.fingerprint import digest_array, digest_file, digest_file_samples, digest_values

KIB = 1 << 10


@pytest.mark.parametrize(
    ("values", "digest"),
    [
        ((), "7ebb3c7c2a87b1a2f8a7ed729ecb040d"),
        (("a", 1, 2.5, None, True, {"b": 1, "a": [1]}), "7e537788e89b56eda7ad046f4e2ee863"),
        (("é",), "40c0a6d2d5cbbd23b9b91e2145fda3c8"),
    ],
)
def test_values_golden(values, digest):
    assert digest_values(*values) == digest


def test_values_ignore_the_order_of_keys_only():
    assert digest_values({"a": 1, "b": 2}) == digest_values({"b": 2, "a": 1})
    assert digest_values(1, 2) != digest_values(2, 1)
    assert digest_values(1, 2) != digest_values([1, 2])


def test_array_and_file_digest_the_same_bytes(tmp_path):
    array = np.arange(10, dtype="<i4")
    array.tofile(tmp_path / "file")
    expected = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
    assert digest_array(array) == digest_file(tmp_path / "file") == expected
    assert digest_array(array.reshape(2, 5).T) != expected  # C order of what is given
    assert digest_array(array[:0]) == hashlib.blake2b(digest_size=16).hexdigest()


@pytest.mark.parametrize("size_bytes", [0, 1, 64 * KIB, 64 * KIB + 1])
def test_samples_of_a_small_file_cover_it(tmp_path, size_bytes):
    content = bytes(range(256)) * (size_bytes // 256 + 1)
    content = content[:size_bytes]
    (tmp_path / "file").write_bytes(content)
    digest = hashlib.blake2b(size_bytes.to_bytes(8, "little"), digest_size=16)
    for start in range(max(0, size_bytes - 64 * KIB) + 1):  # starts 0 and 1 for the largest size here
        digest.update(content[start : start + 64 * KIB])
    assert digest_file_samples(tmp_path / "file") == digest.hexdigest()


@pytest.mark.parametrize("position", [0, 1_234_567, 4096 * KIB - 1])
def test_samples_see_every_byte_up_to_4_mib(tmp_path, position):
    content = bytearray(4096 * KIB)
    (tmp_path / "file").write_bytes(content)
    before = digest_file_samples(tmp_path / "file")
    content[position] ^= 1
    (tmp_path / "file").write_bytes(content)
    assert digest_file_samples(tmp_path / "file") != before


def test_samples_of_a_large_file_see_its_size_and_both_ends(tmp_path):
    size_bytes = 64 << 20
    path = tmp_path / "file"

    def digest(size_bytes, changed=None):
        with open(path, "wb") as stream:
            stream.truncate(size_bytes)  # sparse
            if changed is not None:
                stream.seek(changed)
                stream.write(b"x")
        return digest_file_samples(path)

    digests = [digest(size_bytes), digest(size_bytes + 1), digest(size_bytes, 0), digest(size_bytes, size_bytes - 1)]
    assert len(set(digests)) == 4
