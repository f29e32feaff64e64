"""What every kernel must satisfy, whatever computes it. Inherit, say how a block is computed, and all of it is tested."""

from abc import ABC, abstractmethod

import pytest
import torch


class KernelContract(ABC):
    """Inherited by the test class of one kernel; parametrise by subclassing or by fixtures of the subclass.

    ``positive`` is whether all matrices are positive semi-definite; ``symmetric`` whether K(x, x') = K(x', x).
    """

    positive = True
    symmetric = True
    tolerance = 1e-10
    """Relative to the largest entry; for the precision that the kernel computes in."""

    @abstractmethod
    def samples(self) -> torch.Tensor:
        """At least six samples, two of which are equal: the first and the last."""

    @abstractmethod
    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """The kernel between two sets of samples."""

    def diagonal(self, x: torch.Tensor) -> torch.Tensor | None:
        """The kernel's own diagonal, None if it has no other way to it than the matrix."""
        return None

    def limit(self, matrix: torch.Tensor) -> float:
        return self.tolerance * max(1.0, float(matrix.abs().max()))

    def test_a_matrix_is_finite(self):
        assert torch.isfinite(self.block(self.samples())).all()

    def test_a_matrix_of_one_set_is_symmetric_to_the_last_bit(self):
        if not self.symmetric:
            pytest.skip("not a symmetric kernel")
        matrix = self.block(self.samples())
        assert torch.equal(matrix, matrix.T)

    def test_a_matrix_is_positive_semi_definite(self):
        if not self.positive:
            pytest.skip("not a positive kernel")
        matrix = self.block(self.samples()).double()
        assert float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0]) >= -self.limit(matrix)

    def test_a_block_is_a_slice_of_the_whole_matrix(self):
        x = self.samples()
        whole = self.block(x)
        for rows, columns in ((slice(0, 2), slice(2, None)), (slice(3, 4), slice(0, 5)), (slice(2, 5), slice(2, 5))):
            torch.testing.assert_close(
                self.block(x[rows], x[columns]), whole[rows, columns], rtol=0, atol=self.limit(whole)
            )

    def test_a_matrix_between_sets_is_the_transpose_of_the_other_way_round(self):
        if not self.symmetric:
            pytest.skip("not a symmetric kernel")
        x = self.samples()
        forth, back = self.block(x[:2], x[2:]), self.block(x[2:], x[:2])
        torch.testing.assert_close(forth, back.T, rtol=0, atol=self.limit(forth))

    def test_equal_samples_have_equal_rows(self):
        x = self.samples()
        assert torch.equal(x[0], x[-1]), "the first and the last sample of the suite must be equal"
        whole = self.block(x)
        torch.testing.assert_close(whole[0], whole[-1], rtol=0, atol=self.limit(whole))

    def test_the_order_of_samples_only_permutes_entries(self):
        x = self.samples()
        order = torch.arange(len(x)).flip(0)
        whole = self.block(x)
        torch.testing.assert_close(self.block(x[order]), whole[order][:, order], rtol=0, atol=self.limit(whole))

    def test_a_single_sample_is_enough(self):
        x = self.samples()
        whole = self.block(x)
        torch.testing.assert_close(self.block(x[1:2]), whole[1:2, 1:2], rtol=0, atol=self.limit(whole))

    def test_the_diagonal_is_that_of_the_matrix(self):
        x = self.samples()
        own = self.diagonal(x)
        if own is None:
            pytest.skip("no diagonal of its own")
        whole = self.block(x)
        torch.testing.assert_close(own, whole.diagonal(), rtol=0, atol=self.limit(whole))
