"""LibreChat's code API, below /librechat: programs that are run, and the files that they read and write.

Source: @librechat/agents 3.2 and LibreChat 0.8 as clients (CodeExecutor.ts, api/server/services/Files/Code).
"""
