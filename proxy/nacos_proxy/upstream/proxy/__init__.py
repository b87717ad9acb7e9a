"""An upstream that is a nacos-proxy: its event stream instead of push and polls, its lists with their ages.

Never here: calls other than fetches, which go through the Nacos API of the upper proxy (`upstream.nacos`).
"""
