"""注文 1 件の費用と速さ: 測り、並べ、下限と比べる。`python -m tests.benchmark`"""
